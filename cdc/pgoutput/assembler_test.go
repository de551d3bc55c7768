package pgoutput

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"

	"dinnerbell/state/id"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata")

const ourTable = 16400

// message encodes one line of a scenario as pgoutput does:
//
//	relation OID NAME COLUMN:TYPE...
//	begin LSN | commit LSN
//	insert OID VALUE...
//	update OID [key VALUE... | old VALUE...] new VALUE...
//	delete OID key VALUE... | old VALUE...
//	truncate OID...
//	message (transactional) | message outside
//	origin NAME | type OID NAME
//
// "rows N" before a message gives it N times, with # as the number in each. A value is its text, or NULL, or TOAST (unchanged), or EMPTY, or BAD (not UTF-8).
func message(line string) []byte {
	f := strings.Fields(line)
	switch f[0] {
	case "relation":
		b := append(u32([]byte{'R'}, number(f[1])), "public\x00"+f[2]+"\x00d"...)
		b = binary.BigEndian.AppendUint16(b, uint16(len(f)-3))
		for _, column := range f[3:] {
			name, typ, _ := strings.Cut(column, ":")
			b = u32(u32(append(b, "\x00"+name+"\x00"...), number(typ)), 0)
		}
		return b
	case "begin":
		return append(u64([]byte{'B'}, number(f[1])), make([]byte, 12)...)
	case "commit":
		return append(u64(u64([]byte{'C', 0}, 0), number(f[1])), make([]byte, 8)...)
	case "truncate":
		b := append(u32([]byte{'T'}, uint64(len(f)-1)), 0)
		for _, oid := range f[1:] {
			b = u32(b, number(oid))
		}
		return b
	case "message":
		b := []byte{'M', 1}
		if len(f) > 1 { // outside of a transaction
			b[1] = 0
		}
		return append(u64(b, 7), "dinnerbell\x00\x00\x00\x00\x03any"...)
	case "origin":
		return append(u64([]byte{'O'}, 7), f[1]+"\x00"...)
	case "type":
		return append(u32([]byte{'Y'}, number(f[1])), "public\x00"+f[2]+"\x00"...)
	case "insert":
		return values(append(u32([]byte{'I'}, number(f[1])), 'N'), f[2:])
	}
	b := u32([]byte{f[0][0] - 'a' + 'A'}, number(f[1]))
	rest := f[2:]
	for len(rest) > 0 {
		end := 1
		for end < len(rest) && rest[end] != "new" {
			end++
		}
		tag := map[string]byte{"key": 'K', "old": 'O', "new": 'N'}[rest[0]]
		b = values(append(b, tag), rest[1:end])
		rest = rest[end:]
	}
	return b
}

func number(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		panic(err) //nolint:forbidigo // a typo in a message of these tests, whose tables are made without a t
	}
	return n
}

func u32(b []byte, n uint64) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }
func u64(b []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(b, n) }

func values(b []byte, texts []string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(texts)))
	for _, text := range texts {
		switch text {
		case "NULL":
			b = append(b, 'n')
			continue
		case "TOAST":
			b = append(b, 'u')
			continue
		case "EMPTY":
			text = ""
		case "BAD":
			text = "\xff\xfe"
		}
		b = append(u32(append(b, 't'), uint64(len(text))), text...)
	}
	return b
}

// newTestAssembler knows the table of the contract, with further columns in its key.
func newTestAssembler(from id.LSN, key ...string) *Assembler {
	return NewAssembler(ourTable, append([]string{"id", "restaurant_id", "client_id"}, key...), from)
}

// describe prints a piece for a scenario's expected output.
func describe(p Piece) string {
	var b strings.Builder
	changes, more := p.Changes, 0
	if len(changes) > 20 {
		changes, more = changes[:1], len(changes)-1
	}
	for _, c := range changes {
		fmt.Fprintf(&b, "  %s", c.Op)
		if c.Op != id.Truncate {
			fmt.Fprintf(&b, " row %s", c.Row.Text())
		}
		if c.OldRow != "" {
			fmt.Fprintf(&b, " was %s", c.OldRow.Text())
		}
		if c.Op == id.Insert || c.Op == id.Update {
			fmt.Fprintf(&b, " restaurant %s client %s", idText(c.Restaurant, c.KeepRestaurant), idText(c.Client, c.KeepClient))
		}
		b.WriteByte('\n')
	}
	if more > 0 {
		fmt.Fprintf(&b, "  and %d more up to row %s\n", more, p.Changes[more].Row.Text())
	}
	if p.End == 0 {
		return b.String() + "  part\n"
	}
	fmt.Fprintf(&b, "  end %d\n", uint64(p.End))
	return b.String()
}

func idText(id id.ID, keep bool) string {
	switch {
	case keep:
		return "(kept)"
	case id == "":
		return "(none)"
	}
	return id.Text()
}

// Each script in testdata/assemble is blocks of messages, with "from LSN" or "key
// COLUMN..." (besides id) before them, and after each block, behind "----", the
// expected pieces.
func TestAssembleScripts(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/assemble/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			script, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := play(string(script))
			if *rewrite {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got != string(script) {
				t.Errorf("output differs; run with -rewrite to accept it:\n%s", got)
			}
		})
	}
}

// play runs a script and gives it back with the output that came.
func play(script string) string {
	var out strings.Builder
	asm := newTestAssembler(0)
	for block := range strings.SplitSeq(script, "\n\n") {
		input, _, _ := strings.Cut(block, "\n----")
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		out.WriteString(strings.TrimRight(input, "\n") + "\n----\n")
		for line := range strings.Lines(input) {
			line = strings.TrimSpace(line)
			switch {
			case line == "" || line[0] == '#':
				continue
			case strings.HasPrefix(line, "from "):
				asm = newTestAssembler(id.LSN(number(line[5:])))
				continue
			case strings.HasPrefix(line, "key "):
				asm = newTestAssembler(0, strings.Fields(line[4:])...)
				continue
			}
			for _, line := range repeated(line) {
				p, ok, err := asm.Add(message(line))
				if err != nil {
					fmt.Fprintf(&out, "  error: %v\n", err)
				}
				if ok {
					out.WriteString(describe(p))
				}
			}
		}
	}
	return out.String()
}

// repeated gives the lines of "rows N …".
func repeated(line string) []string {
	rest, ok := strings.CutPrefix(line, "rows ")
	if !ok {
		return []string{line}
	}
	count, rest, _ := strings.Cut(rest, " ")
	var lines []string
	for i := range number(count) {
		lines = append(lines, strings.ReplaceAll(rest, "#", strconv.FormatUint(i+1, 10)))
	}
	return lines
}

// A transaction too large is cut; only its last part has the end, and memory
// does not grow with it.
func TestAssembleCuts(t *testing.T) {
	t.Parallel()
	asm := newTestAssembler(0)
	add := func(line string) (Piece, bool) {
		p, ok, err := asm.Add(message(line))
		if err != nil {
			t.Fatal(err)
		}
		return p, ok
	}
	add("relation 16400 t id:23 client_id:1043 restaurant_id:1043")
	add("begin 100")
	const rows = 3*MaxPartChanges + 5
	changes, parts := 0, 0
	for i := range rows {
		if p, ok := add(fmt.Sprintf("insert 16400 %d c r", i)); ok {
			if p.End != 0 || !p.Partial || len(p.Changes) > MaxPartChanges {
				t.Errorf("part has %d changes, end %s, cut %v", len(p.Changes), p.End, p.Partial)
			}
			parts++
			changes += len(p.Changes)
		}
	}
	p, ok := add("commit 200")
	if !ok || p.End != 200 || !p.Partial || parts != 3 || changes+len(p.Changes) != rows {
		t.Errorf("after %d parts with %d changes the last has %d, end %s, cut %v", parts, changes, len(p.Changes), p.End, p.Partial)
	}
	long := strings.Repeat("x", 1<<20)
	add("begin 300")
	cut := false
	for i := range 5 {
		p, ok := add(fmt.Sprintf("insert 16400 %d %s r", i, long))
		cut = cut || ok && p.Partial
	}
	if !cut {
		t.Error("5 MB in 5 rows were not cut")
	}
	add("commit 400")
	add("begin 500")
	add("insert 16400 1 c r")
	if p, ok := add("commit 600"); !ok || p.Partial {
		t.Errorf("a small transaction after a cut one: %+v", p)
	}
}

// Truncated and garbled messages are errors, never panics.
func TestDecodeCutMessages(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"relation 16400 t id:23 client_id:1043 restaurant_id:1043", "begin 1", "commit 2", "insert 16400 1 c r",
		"update 16400 key 1 NULL NULL new 2 c r", "delete 16400 key 1 NULL NULL", "truncate 1 16400", //nolint:dupword // a key message has no other values
	} {
		msg := message(line)
		for n := range msg {
			d := newTestAssembler(0).dec
			if line[0] != 'r' {
				if _, _, err := d.decodeMessage(message("relation 16400 t id:23 client_id:1043 restaurant_id:1043"), nil); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := d.decodeMessage(msg[:n], nil); !errors.Is(err, ErrMalformed) {
				t.Errorf("%q cut to %d of %d bytes: %v, want errMalformed", line, n, len(msg), err)
			}
		}
	}
}

// The memory that decoding may allocate: for each byte the share of the smallest
// message (15 bytes), which makes a change of 120 bytes in a slice that grows by
// half; and some, for the runtime counts whole spans.
const fuzzBase, fuzzPerByte = 1 << 20, 64

// allocated is all that was ever allocated by the process.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// framed is the messages of a script's block, each behind its length.
func framed(block string) []byte {
	var data []byte
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		word, _, _ := strings.Cut(line, " ")
		switch word {
		case "", "#", "from", "key", "rows":
			continue
		case "----":
			return data
		}
		msg := message(line)
		data = append(binary.BigEndian.AppendUint16(data, uint16(len(msg))), msg...)
	}
	return data
}

// FuzzDecode takes any sequence of messages, each behind its length.
func FuzzDecode(f *testing.F) {
	scripts, err := filepath.Glob("testdata/assemble/*.txt")
	if err != nil || len(scripts) == 0 {
		f.Fatalf("no scripts: %v", err)
	}
	for _, path := range scripts {
		script, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for block := range strings.SplitSeq(string(script), "\n\n") {
			f.Add(framed(block))
		}
	}
	for _, cut := range []string{"\x00\x09T\xff\xff\xff\xff\x00\x00\x00\x40", "\x00\x0bR\x00\x00\x40\x10\x00\x00\x00\xff\xff"} {
		f.Add([]byte(cut)) // counts far beyond what follows
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		size, before := len(data), allocated()
		defer func() {
			if n := allocated() - before; n > fuzzBase+fuzzPerByte*uint64(size) {
				t.Fatalf("%d bytes of memory for %d of input", n, size)
			}
		}()
		asm := newTestAssembler(3)
		for len(data) >= 2 {
			n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			msg := data[2 : 2+n]
			before := bytes.Clone(msg)
			p, ok, err := asm.Add(msg)
			if !bytes.Equal(msg, before) {
				t.Fatal("the message was changed")
			}
			if err != nil {
				if ok {
					t.Fatal("a piece came with an error")
				}
				return
			}
			for _, c := range p.Changes {
				if c.Op != id.Truncate && c.Row == "" {
					t.Fatalf("a change without a row: %+v", c)
				}
				if len(c.Row)+len(c.OldRow) > 2*n+20 && len(p.Changes) == 1 {
					t.Fatalf("a row id larger than its message: %d bytes of %d", len(c.Row), n)
				}
			}
			data = data[2+n:]
		}
	})
}

// BenchmarkDecode is one transaction of one row per iteration.
func BenchmarkDecode(b *testing.B) {
	asm := newTestAssembler(0)
	if _, _, err := asm.Add(message("relation 16400 t id:23 client_id:1043 restaurant_id:1043")); err != nil {
		b.Fatal(err)
	}
	begin, commit := message("begin 100"), message("commit 200")
	insert := message("insert 16400 1234567 123e4567-e89b-12d3-a456-426614174000 223e4567-e89b-12d3-a456-426614174000")
	b.ReportAllocs()
	for b.Loop() {
		for _, msg := range [][]byte{begin, insert, commit} {
			if _, _, err := asm.Add(msg); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
}
