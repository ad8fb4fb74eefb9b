package lpm

// noGather turns the assembly off, and its result on again.
func noGather() func() {
	gather4 = false
	return func() { gather4 = true }
}
