package id

import (
	"bytes"
	"errors"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestLSN(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]LSN{
		"0/0": 0, "0/1A2B": 0x1a2b, "16/B374D848": 0x16_b374d848, "FFFFFFFF/FFFFFFFF": math.MaxUint64,
	} {
		got, err := ParseLSN(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("ParseLSN(%q) = %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "/", "0/", "/0", "1/2/3", "+1/0", "0/-1", "0/1_0", "100000000/0", "0/0x1", "g/0"} {
		if got, err := ParseLSN(text); !errors.Is(err, ErrBadLSN) {
			t.Errorf("ParseLSN(%q) = %s, %v; want ErrBadLSN", text, got, err)
		}
	}
}

// idTexts are spellings that must stay apart.
var idTexts = []string{
	"123e4567-e89b-12d3-a456-426614174000",
	"123E4567-E89B-12D3-A456-426614174000",
	"123e4567-e89b-12d3-a456-42661417400A",
	"{123e4567-e89b-12d3-a456-426614174000}",
	"123e4567e89b12d3a456426614174000",
	"123e4567-e89b-12d3-a456-42661417400",
	"123e4567-e89b-12d3-a456-42661417400g",
	"123e4567-e89b-12d3-a456--26614174000",
	"00000000-0000-0000-0000-000000000000",
	"ffffffff-ffff-ffff-ffff-ffffffffffff",
	"a", "ab", "b", "\x01", "\x02", "\x01aaaaaaaaaaaaaaaa", "7", "-7", " ", "ключ", "\U0010ffff",
	strings.Repeat("x", 1024), strings.Repeat("x", 1025),
}

func mustPackID(t *testing.T, text string) ID {
	t.Helper()
	packed, err := Pack(text)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

func TestIDRoundTrip(t *testing.T) {
	t.Parallel()
	seen := map[ID]string{}
	for _, text := range idTexts {
		packed := mustPackID(t, text)
		checkID(t, packed, text)
		if other, ok := seen[packed]; ok {
			t.Errorf("%q and %q share a packed id", text, other)
		}
		seen[packed] = text
	}
	for a := range seen {
		for b := range seen {
			if a != b && strings.HasPrefix(string(a), string(b)) {
				t.Errorf("packed %q is a prefix of packed %q", seen[b], seen[a])
			}
		}
	}
	if n := len(mustPackID(t, idTexts[0])); n != 17 {
		t.Errorf("a UUID takes %d bytes, want 17", n)
	}
}

func checkID(t *testing.T, packed ID, text string) {
	t.Helper()
	same, err := PackBytes([]byte(text))
	if err != nil || same != packed {
		t.Errorf("PackIDBytes(%q) = %x, %v; PackID gave %x", text, same, err, packed)
	}
	if same, err = new(Packer).ID([]byte(text)); err != nil || same != packed {
		t.Errorf("Packer.ID(%q) = %x, %v; PackID gave %x", text, same, err, packed)
	}
	if packed.Text() != text || string(packed.AppendText([]byte("-"))) != "-"+text || packed.TextLen() != len(text) {
		t.Errorf("packed %q gives back %q, length %d", text, packed.Text(), packed.TextLen())
	}
	got, rest, err := Read(append([]byte(packed), "rest"...))
	if err != nil || got != packed || string(rest) != "rest" {
		t.Errorf("ReadID of %q and more = %q, %q, %v", text, got.Text(), rest, err)
	}
}

func TestIDRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "\x00", "a\x00", "\x00a", "\xff", "a\xc3"} {
		if got, err := Pack(text); !errors.Is(err, ErrBadID) {
			t.Errorf("PackID(%q) = %x, %v; want ErrBadID", text, got, err)
		}
		if got, err := PackBytes([]byte(text)); !errors.Is(err, ErrBadID) {
			t.Errorf("PackIDBytes(%q) = %x, %v; want ErrBadID", text, got, err)
		}
		if got, err := new(Packer).ID([]byte(text)); !errors.Is(err, ErrBadID) {
			t.Errorf("Packer.ID(%q) = %x, %v; want ErrBadID", text, got, err)
		}
	}
	for _, b := range []string{"", "\x00", "\x01short", "\x02", "\x02\x00", "\x02open", "\x03x\x00"} {
		if got, rest, err := Read([]byte(b)); !errors.Is(err, ErrBadID) || string(rest) != b {
			t.Errorf("ReadID(%q) = %x, %q, %v; want ErrBadID", b, got, rest, err)
		}
	}
	if none := ID(""); none.Text() != "" || none.TextLen() != 0 || none.AppendText(nil) != nil {
		t.Error("no id has a text")
	}
}

// TestPacker: an id that the packer returned stays as it is while more ids are packed,
// however much memory they take, and Reset releases a large arena.
func TestPacker(t *testing.T) {
	t.Parallel()
	var p Packer
	for range 2 {
		var got, want []string
		for i := range 40_000 {
			n := int64(i-5) * 77_777
			id, err := p.ID([]byte("client " + strconv.Itoa(i)))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(id), string(p.RowNumber(n)), string(p.RowID([]byte(strconv.FormatInt(n, 10)))))
			same, err := Pack("client " + strconv.Itoa(i))
			if err != nil {
				t.Fatal(err)
			}
			row := string(PackRow(strconv.FormatInt(n, 10)))
			want = append(want, string(same), row, row)
		}
		if !slices.Equal(got, want) {
			t.Error("what was packed is not what PackID and PackRowID give")
		}
		if p.Reset(); len(p.arena) != 0 || cap(p.arena) > keptArena {
			t.Errorf("%d bytes of %d are kept", len(p.arena), cap(p.arena))
		}
	}
}

func FuzzID(f *testing.F) {
	for _, text := range idTexts {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		packed, err := Pack(text)
		if err == nil {
			checkID(t, packed, text)
		}
		if row := PackRow(text); row.Text() != text {
			t.Errorf("row id of %q gives back %q", text, row.Text())
		}
		if id, rest, err := Read([]byte(text)); err == nil && string(id)+string(rest) != text {
			t.Errorf("ReadID(%q) lost something: %q, %q", text, id, rest)
		}
	})
}

func TestRowIDOrder(t *testing.T) {
	t.Parallel()
	numbers := []int64{0, 1, -1, 127, 128, 255, 256, -255, -256, -257, -65536, -65537, 65535, 65536, 1 << 31, math.MaxInt64, math.MinInt64, math.MinInt64 + 1}
	for i := range 62 {
		numbers = append(numbers, 1<<i, 1<<i-1, -1<<i, -1<<i-1)
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	for i, n := range numbers {
		text := strconv.FormatInt(n, 10)
		packed := PackRow(text)
		if packed.Text() != text {
			t.Errorf("row id of %s gives back %s", text, packed.Text())
		}
		if i > 0 && PackRow(strconv.FormatInt(numbers[i-1], 10)) >= packed {
			t.Errorf("row id of %d is not above that of %d", n, numbers[i-1])
		}
	}
}

func TestRowIDText(t *testing.T) {
	t.Parallel()
	seen := map[RowID]string{}
	for _, text := range append([]string{"", "0", "-0", "00", "007", "+7", "1e3", "9223372036854775807", "9223372036854775808", "-9223372036854775809"}, idTexts...) {
		packed := PackRow(text)
		if packed == "" || packed.Text() != text {
			t.Errorf("row id of %q is %x, gives back %q", text, packed, packed.Text())
		}
		if other, ok := seen[packed]; ok {
			t.Errorf("%q and %q share a row id", text, other)
		}
		seen[packed] = text
	}
	if n := len(PackRow("100000")); n != 4 {
		t.Errorf("row id of 100000 takes %d bytes, want 4", n)
	}
}

func TestIDList(t *testing.T) {
	t.Parallel()
	var list List
	for range 2 {
		var all []byte
		for _, text := range idTexts {
			list.Append(mustPackID(t, text))
			all = append(all, mustPackID(t, text)...)
		}
		if list.Len() != len(idTexts) || !bytes.Equal(list.Bytes(), all) {
			t.Fatalf("%d ids, %d bytes; want %d, %d", list.Len(), len(list.Bytes()), len(idTexts), len(all))
		}
		for i, text := range idTexts {
			if list.At(i).Text() != text {
				t.Errorf("id %d is %q, want %q", i, list.At(i).Text(), text)
			}
		}
		list.Reset()
	}
	list.Append(mustPackID(t, "first"))
	view, text := list.At(0), list.At(0).Text()
	list.Reset()
	list.Append(mustPackID(t, "other"))
	if text != "first" || view.Text() != "other" {
		t.Errorf("Text of a view is %q, the view now %q; want a copy and a view", text, view.Text())
	}
	list.Reset()
	if list.Len() != 0 || len(list.Bytes()) != 0 {
		t.Error("a reset list is not empty")
	}
}

// packUUID accepts exactly the texts that the pattern matches: every byte is tried at
// every place of a UUID.
func TestPackUUIDBytes(t *testing.T) {
	t.Parallel()
	canonical := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	good := "01234567-89ab-cdef-0123-456789abcdef"
	for at := range good {
		for value := range 256 {
			b := []byte(good)
			b[at] = byte(value)
			var packed [uuidPackLen]byte
			ok := packUUID(&packed, string(b))
			if want := canonical.Match(b); ok != want {
				t.Fatalf("%q: a UUID: %v, want %v", b, ok, want)
			}
			if ok && ID(packed[:]).Text() != string(b) {
				t.Fatalf("%q is packed as %x", b, packed)
			}
		}
	}
}
