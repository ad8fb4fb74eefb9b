package clock

import "time"

// MillisOfDay is the time of day in UTC in milliseconds, as IPv4's timestamp option
// and ICMP's have it (RFC 791, RFC 792).
func MillisOfDay() uint32 { return uint32(time.Now().UnixMilli() % (24 * 60 * 60 * 1000)) }
