package record

import (
	"encoding/binary"
	"encoding/json"
	"testing"
)

func TestRecordOfTheContractsExample(t *testing.T) {
	w := NewTemplate(example(), 1659304828)
	b, keyEnd, valueEnd := w.AppendRecord(nil, packID(t, "223e4567-e89b-12d3-a456-426614174000"))
	if key := string(b[:keyEnd]); key != "123e4567-e89b-12d3-a456-426614174003:223e4567-e89b-12d3-a456-426614174000" {
		t.Errorf("key %s", key)
	}
	const want = `{"restaurant_id":"123e4567-e89b-12d3-a456-426614174000","adv_campaign_id":"123e4567-e89b-12d3-a456-426614174003","adv_campaign_content":"first campaign","adv_campaign_owner":"Ivanov Ivan Ivanovich","adv_campaign_owner_contact":"iiivanov@restaurant.ru","adv_campaign_datetime_start":1659203516,"adv_campaign_datetime_end":2659207116,"client_id":"223e4567-e89b-12d3-a456-426614174000","datetime_created":1659131516,"trigger_datetime_created":1659304828}`
	if value := string(b[keyEnd:valueEnd]); value != want {
		t.Errorf("value\n%s, want\n%s", value, want)
	}
}

func TestRecordEscapes(t *testing.T) {
	c := example()
	c.ID, c.Content = "50%:off", "a \"b\" <c> \n й"
	for _, c2 := range []struct{ client, key string }{
		{"plain", "50%25%3Aoff:plain"},
		{"a:b%c", "50%25%3Aoff:a%3Ab%25c"},
		{`q"u\o` + "\n", "50%25%3Aoff:" + `q"u\o` + "\n"},
		{"клиент", "50%25%3Aoff:клиент"},
	} {
		b, keyEnd, valueEnd := NewTemplate(c, 7).AppendRecord([]byte("before"), packID(t, c2.client))
		if key := string(b[len("before"):keyEnd]); key != c2.key {
			t.Errorf("key %q, want %q", key, c2.key)
		}
		var v map[string]any
		if err := json.Unmarshal(b[keyEnd:valueEnd], &v); err != nil {
			t.Fatalf("%s: %v", b[keyEnd:valueEnd], err)
		}
		if v["client_id"] != c2.client || v["adv_campaign_content"] != c.Content {
			t.Errorf("client %q content %q in %s", v["client_id"], v["adv_campaign_content"], b[keyEnd:valueEnd])
		}
		if size := NewTemplate(c, 7).MaxRecordSize(len(c2.client)); valueEnd-len("before") > size {
			t.Errorf("record of %d bytes, recordSize says at most %d", valueEnd, size)
		}
	}
}

// No two pairs may share a key: the escape must be injective over the colon.
func TestKeysDoNotCollide(t *testing.T) {
	seen := map[string][2]string{}
	ids := []string{"a", "b", "a:b", "b:a", ":", "%3A", "%", "a%3Ab", "%25"}
	for _, campaign := range ids {
		for _, client := range ids {
			c := example()
			c.ID = campaign
			b, keyEnd, _ := NewTemplate(c, 1).AppendRecord(nil, packID(t, client))
			if other, ok := seen[string(b[:keyEnd])]; ok {
				t.Errorf("(%s, %s) and %v share the key %s", campaign, client, other, b[:keyEnd])
			}
			seen[string(b[:keyEnd])] = [2]string{campaign, client}
		}
	}
}

func TestTupleHasTenFields(t *testing.T) {
	b := ContractKinds.NewTemplate(example(), 1659304828).appendTuple(nil, packID(t, "client"))
	if n := binary.BigEndian.Uint16(b); n != 10 {
		t.Fatalf("%d fields", n)
	}
	b = b[2:]
	var sizes []uint32
	for len(b) > 0 {
		n := binary.BigEndian.Uint32(b)
		sizes = append(sizes, n)
		b = b[4+n:]
	}
	if len(sizes) != 10 || sizes[5] != 8 || sizes[8] != 4 || sizes[9] != 6 {
		t.Errorf("field sizes %v", sizes)
	}
}

// The hot encoders may not allocate per client.
func TestEncodersDoNotAllocate(t *testing.T) {
	w, id := ContractKinds.NewTemplate(example(), 1), packID(t, "223e4567-e89b-12d3-a456-426614174000")
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { w.appendTuple(buf, id) }); n != 0 {
		t.Errorf("appendTuple: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { w.AppendRecord(buf, id) }); n != 0 {
		t.Errorf("appendRecord: %v allocations", n)
	}
}

func BenchmarkAppendRecord(b *testing.B) {
	w, id := ContractKinds.NewTemplate(example(), 1), packID(b, "223e4567-e89b-12d3-a456-426614174000")
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		w.AppendRecord(buf, id)
	}
}
