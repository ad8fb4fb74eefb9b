// Package gen is the generator: it sends streams of frames and captures open loop at a paced rate into one or two
// ports, receives what comes back, and says what became of each frame.
//
// # Threads
//
// A port and all its queues belong to one thread. One thread serves both ports, or each has its
// own, as Options.CPUs says. Threads live from New to Close: between trials they poll now and then, so that
// address resolution is answered and rings do not fill.
//
// # A trial
//
// Try compiles the streams for the load's sizes and rate, hands the compiled trial to the threads and waits for
// them to hand it back. Nothing of it is read in between. A thread sends what its schedule says is due
// and polls its queues in turn; when all threads have sent everything they wait for stragglers.
//
// # Open loop
//
// Every frame is due at a moment that follows from its stream's rate, or its capture's timing, alone (beat, schedule). A
// thread that was held up catches up with at most Options.CatchUp (or 32 frames) of backlog; what is beyond is never sent,
// and more of it than Options.Shortfall makes the trial invalid.
//
// # Time
//
// The clock is the time-stamp counter, read once for each burst that is made and once for each that is received. A
// stamp is older than its frame's transmission by at most the making of a burst of 64 frames: below
// 1 us, and some 50 ns at rates at which frames go one by one. Reception is the moment at which the
// burst came out of the port.
package gen
