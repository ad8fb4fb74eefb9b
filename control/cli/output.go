package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// printJSON writes a message for scripts: the schema's own field names, every
// field present, and counters as numbers (protojson makes strings of 64-bit ones).
func printJSON(w io.Writer, m proto.Message) error {
	var out bytes.Buffer
	if err := json.Indent(&out, appendMessage(nil, m.ProtoReflect()), "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err := w.Write(out.Bytes())
	return err
}

// jsonLine is the same in one line, for streams.
func jsonLine(m proto.Message) []byte { return append(appendMessage(nil, m.ProtoReflect()), '\n') }

func appendMessage(b []byte, m protoreflect.Message) []byte {
	b = append(b, '{')
	fs := m.Descriptor().Fields()
	for i := range fs.Len() {
		f := fs.Get(i)
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, string(f.Name())), ':')
		if !f.IsList() {
			b = appendValue(b, f, m.Get(f))
			continue
		}
		b = append(b, '[')
		l := m.Get(f).List()
		for j := range l.Len() {
			if j > 0 {
				b = append(b, ',')
			}
			b = appendValue(b, f, l.Get(j))
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

func appendValue(b []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return appendMessage(b, v.Message())
	case protoreflect.StringKind:
		return appendString(b, v.String())
	case protoreflect.BytesKind:
		return appendString(b, base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, v.Bool())
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		return strconv.AppendUint(b, v.Uint(), 10)
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		return strconv.AppendInt(b, v.Int(), 10)
	}
	panic("cli: no JSON for fields of kind " + f.Kind().String())
}

func appendString(b []byte, s string) []byte {
	var q bytes.Buffer
	e := json.NewEncoder(&q)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic("cli: " + err.Error()) // a string cannot fail
	}
	return append(b, bytes.TrimSuffix(q.Bytes(), []byte("\n"))...)
}

// table lays out columns. A column whose heading starts with ">" is aligned to the right.
type table struct {
	head []string
	rows [][]string
}

func newTable(head ...string) *table { return &table{head: head} }

func (t *table) row(cells ...any) {
	r := make([]string, len(cells))
	for i, c := range cells {
		r[i] = fmt.Sprint(c)
	}
	t.rows = append(t.rows, r)
}

// print writes the table; with nothing in it, the heading only.
func (t *table) print(w io.Writer) {
	width := make([]int, len(t.head))
	for i, h := range t.head {
		width[i] = utf8.RuneCountInString(strings.TrimPrefix(h, ">"))
		for _, r := range t.rows {
			width[i] = max(width[i], utf8.RuneCountInString(r[i]))
		}
	}
	line := func(cells []string) {
		var b strings.Builder
		for i, c := range cells {
			if i > 0 {
				b.WriteString("  ")
			}
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if strings.HasPrefix(t.head[i], ">") {
				b.WriteString(pad + c)
			} else {
				b.WriteString(c + pad)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	head := make([]string, len(t.head))
	for i, h := range t.head {
		head[i] = strings.TrimPrefix(h, ">")
	}
	line(head)
	for _, r := range t.rows {
		line(r)
	}
}

// speed words a link's rate in Mbit/s.
func speed(mbps uint32) string {
	switch {
	case mbps == 0:
		return "-"
	case mbps >= 1000 && mbps%100 == 0:
		return strconv.FormatFloat(float64(mbps)/1000, 'f', -1, 64) + "G"
	}
	return strconv.Itoa(int(mbps)) + "M"
}

// si words a number with three digits and a unit: 1.49M.
func si(x float64) string {
	unit := ""
	for _, u := range []string{"k", "M", "G", "T", "P"} {
		if x < 999.5 {
			break
		}
		x /= 1000
		unit = u
	}
	switch {
	case unit == "" && (x == 0 || x >= 99.5 || x == float64(int(x))):
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x < 9.995:
		return strconv.FormatFloat(x, 'f', 2, 64) + unit
	case x < 99.95:
		return strconv.FormatFloat(x, 'f', 1, 64) + unit
	}
	return strconv.FormatFloat(x, 'f', 0, 64) + unit
}

// age words a duration to the second.
func age(ns int64) string {
	d := time.Duration(ns).Round(time.Second)
	if d >= 24*time.Hour {
		return fmt.Sprintf("%dd%s", d/(24*time.Hour), d%(24*time.Hour))
	}
	return d.String()
}

// ratio is a/b to one digit, or "-" where b is 0.
func ratio(a, b uint64) string {
	if b == 0 {
		return "-"
	}
	return strconv.FormatFloat(float64(a)/float64(b), 'f', 1, 64)
}

func percent(a, b uint64) string {
	if b == 0 {
		return "-"
	}
	return strconv.FormatFloat(100*float64(a)/float64(b), 'f', 1, 64) + "%"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func plural(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.FormatUint(n, 10) + " " + many
}
