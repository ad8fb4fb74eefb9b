package host

// For the tests of the whole road, which package host cannot import.
var (
	Sequences = sequences
	Normal    = normal
	Unwanted  = unwanted
)
