package pcap

import "time"

// Frame is a frame of a capture, without FCS.
type Frame struct {
	Data []byte
	Time time.Time
}

// Read reads all Ethernet frames of a pcap or pcapng file, gzipped or not. The note says what was left out, "" for
// nothing.
func Read(name string) (frames []Frame, note string, err error) {
	c, err := load(name)
	if err != nil {
		return nil, "", err
	}
	defer c.free()
	all := make([]byte, 0, len(c.data))
	for _, r := range c.recs {
		at := len(all)
		all = append(all, c.data[r.off:][:r.n]...)
		frames = append(frames, Frame{Data: all[at:len(all):len(all)], Time: time.Unix(0, r.time)})
	}
	return frames, c.note, nil
}
