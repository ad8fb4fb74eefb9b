// Package search finds what a thing under test can do by asking a trial.Bed: MLRsearch (RFC 9971), the
// tests of RFC 2544 with RFC 9004's back-to-back frames, RFC 8219's delay variation, soak, and the self-test that puts
// the generator's own ceiling beside each result.
//
// A search is a deterministic function of the outcomes it has been given. That is what makes it resumable: a Journal
// of the outcomes so far is replayed, and the first trial that is not in it is made on the bed. It is
// also what makes it testable: a simulated bed answers in no time.
//
// All rates are frames a second over all directions, and all sizes are bytes with FCS, as in package trial.
package search
