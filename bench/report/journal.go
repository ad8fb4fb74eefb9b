package report

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"millrace/bench/search"
	"millrace/bench/trial"
)

// record is a line of a journal; one of its parts is set.
type record struct {
	Journal *head           `json:"journal,omitempty"` // the first
	Bed     string          `json:"bed,omitempty"`     // with Entry
	Entry   json.RawMessage `json:"entry,omitempty"`   // a trial
	Done    bool            `json:"done,omitempty"`    // the last, of a run that is complete
}

type head struct {
	Version int       `json:"version"` // 1
	Bench   string    `json:"bench"`
	Started time.Time `json:"started"`
}

// entry is a trial as a journal keeps it.
type entry struct {
	Search  string         `json:"search,omitempty"`
	Phase   string         `json:"phase,omitempty"`
	Outcome *trial.Outcome `json:"outcome"`
	Latency []byte         `json:"latency,omitempty"` // V2 compressed encoding of HdrHistogram
}

// file is what a journal writes to.
type file interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
	Close() error
}

// journal is a file of records, one a line, each of which is on the disk before append returns. The line that a crash cut off is
// dropped when the file is opened.
type journal struct {
	path   string
	f      file
	size   int64
	head   *head
	trials []record
	done   bool
}

// openJournal reads a journal, and makes it, and keeps others out, where it shall be written.
func openJournal(path string, write bool) (*journal, error) {
	j := &journal{path: path}
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR | os.O_CREATE | os.O_APPEND
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return nil, err
	}
	j.f = f
	if write {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: another process is writing it", path)
		}
	}
	b, err := io.ReadAll(f)
	if err == nil {
		err = j.read(b)
	}
	if err == nil && write && j.size < int64(len(b)) {
		err = f.Truncate(j.size)
	}
	if err != nil || !write {
		f.Close()
	}
	return j, err
}

func (j *journal) read(b []byte) error {
	for n := 1; len(b) > 0; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		var r record
		err := json.Unmarshal(line, &r)
		if !whole || err != nil && len(rest) == 0 {
			return nil // cut off
		}
		switch {
		case err != nil:
			return fmt.Errorf("%s:%d: %w", j.path, n, err)
		case n == 1 && (r.Journal == nil || r.Journal.Version != 1):
			return fmt.Errorf("%s:1: no journal of version 1", j.path)
		case r.Journal != nil:
			j.head = r.Journal
		case r.Entry != nil:
			j.trials = append(j.trials, r)
		case r.Done:
			j.done = true
		}
		j.size += int64(len(line)) + 1
		b = rest
	}
	return nil
}

// append adds a record. Of one that cannot be written whole nothing stays.
func (j *journal) append(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	_, err = j.f.Write(b)
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w; the trials before this one are kept", j.path, err), j.f.Truncate(j.size))
	}
	j.size += int64(len(b))
	return nil
}

func (j *journal) close() {
	if j.f != nil {
		j.f.Close() // every record is on the disk already
	}
}

// append keeps a trial.
func (r *Run) append(bed string, e *entry) error {
	if e.Outcome.Latency != nil && e.Latency == nil {
		var err error
		if e.Latency, err = e.Outcome.Latency.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err != nil {
			return err
		}
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return r.keep(bed, b, Trial{Bed: bed, Search: e.Search, Phase: e.Phase, Outcome: e.Outcome})
}

func (r *Run) keep(bed string, entry []byte, t Trial) error {
	rec := record{Bed: bed, Entry: entry}
	if err := r.j.append(&rec); err != nil {
		return err
	}
	t.N = len(r.Made) + 1
	r.Made, r.j.trials = append(r.Made, t), append(r.j.trials, rec)
	return nil
}

// next is the place of the next trial of the earlier run that was made for a bed and search, -1 when there is none left.
func (r *Run) next(bed, search string) int {
	key := bed + "\x00" + search
	for i := r.replay[key]; i < r.old; i++ {
		if t := &r.Made[i]; t.Bed == bed && t.Search == search {
			r.replay[key] = i + 1
			return i
		}
	}
	r.replay[key] = r.old
	return -1
}

// Record is a bed whose trials go into the run: those that an earlier run has made already are not made again. phase names
// what they are for.
func (r *Run) Record(b trial.Bed, phase func() string) trial.Bed { return &recorder{b, r, phase} }

type recorder struct {
	trial.Bed
	r     *Run
	phase func() string
}

func (b *recorder) Try(ctx context.Context, l trial.Load) (*trial.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if i := b.r.next(b.Name(), ""); i >= 0 {
		o := b.r.Made[i].Outcome
		if o.Load != l {
			return nil, fmt.Errorf("%s: trial %d was made with %+v, and %+v is asked for: it is another run's", b.r.j.path, i+1, o.Load, l)
		}
		return o, nil
	}
	o, err := b.Bed.Try(ctx, l)
	if err != nil {
		return nil, err
	}
	return o, b.r.append(b.Name(), &entry{Phase: b.phase(), Outcome: o})
}

// Journal is the run's journal for a search of a bed.
func (r *Run) Journal(bed, name string) search.Journal { return &searchJournal{r, bed, name} }

type searchJournal struct {
	r         *Run
	bed, name string
}

func (j *searchJournal) Next(l trial.Load) (*search.Entry, error) {
	i := j.r.next(j.bed, j.name)
	if i < 0 {
		return nil, nil
	}
	e := &search.Entry{}
	if err := json.Unmarshal(j.r.j.trials[i].Entry, e); err != nil {
		return nil, err
	}
	if !search.Same(e.Outcome.Load, l) {
		return nil, fmt.Errorf("%w: trial %d was made with %+v, and %+v is asked for", search.ErrJournal, i+1, e.Outcome.Load, l)
	}
	return e, nil
}

func (j *searchJournal) Add(e *search.Entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return j.r.keep(j.bed, b, Trial{Bed: j.bed, Search: j.name, Phase: e.Phase, Outcome: e.Outcome})
}
