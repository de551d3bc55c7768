package record

import (
	"bytes"
	"slices"
	"testing"

	"dinnerbell/stream/campaign"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compileSchema reads a schema of docs/schemas.
func compileSchema(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile("../../docs/schemas/" + name + ".schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func validateJSON(schema *jsonschema.Schema, value []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}

// Every notification that the encoder writes is valid, and has exactly the schema's
// fields.
func TestNotificationSchema(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t, "notification")
	odd := example()
	odd.ID, odd.Content, odd.Owner = "50%:off", "a \"b\" <c> \n й \u2028", ""
	for _, c := range []*campaign.Campaign{example(), odd} {
		for _, client := range []string{"223e4567-e89b-12d3-a456-426614174000", "клиент", `q"u\o` + "\n"} {
			b, keyEnd, valueEnd := NewTemplate(c, 1659304828).AppendRecord(nil, packID(t, client))
			value := b[keyEnd:valueEnd]
			if err := validateJSON(schema, value); err != nil {
				t.Errorf("%s: %v", value, err)
			}
			for _, name := range schema.Required {
				if without := bytes.Replace(value, []byte(`"`+name+`"`), []byte(`"x"`), 1); validateJSON(schema, without) == nil {
					t.Errorf("valid without %s", name)
				}
			}
		}
	}
}

// Every dead letter that is written has headers, and of left-out clients a value, of the
// schemas. The schema lists the classes.
func TestDeadLetterSchemas(t *testing.T) {
	t.Parallel()
	headers, clients := compileSchema(t, "dead-letter-headers"), compileSchema(t, "left-out-clients")
	maker := LetterMaker{Topic: "campaigns", Limit: 1 << 20}
	leftOut := maker.LeftOutClients(example(), campaign.Position{Lane: 3, Offset: 17}, "too long", []string{"a", "б"})
	if err := validateJSON(clients, leftOut.Value); err != nil {
		t.Errorf("%s: %v", leftOut.Value, err)
	}
	cut := DeadLetter{Topic: "campaigns", Reason: "because", Class: campaign.ClassTooLarge, Value: make([]byte, 5000), Timestamp: -1}
	cut.Fit(2000, 5000, false)
	letters := []DeadLetter{leftOut, cut, maker.RefusedCampaign(example(), campaign.Position{}, "no soup"), {Topic: "campaigns", Reason: "of an earlier version"}}
	for _, class := range campaign.ReasonClasses {
		letters = append(letters, DeadLetter{Topic: "campaigns", Reason: "because", Class: class})
	}
	for i := range letters {
		if err := headers.Validate(headerMap(&letters[i])); err != nil {
			t.Errorf("%+v: %v", letters[i].RecordHeaders(), err)
		}
	}
	unknown := DeadLetter{Topic: "campaigns", Reason: "because", Class: "no_such_class"}
	if headers.Validate(headerMap(&unknown)) == nil {
		t.Error("an unknown class is valid")
	}
	for name := range headers.Properties {
		if !slices.ContainsFunc(letters, func(d DeadLetter) bool { return headerMap(&d)[name] != nil }) {
			t.Errorf("no letter has the header %s of the schema", name)
		}
	}
}

func headerMap(d *DeadLetter) map[string]any {
	m := map[string]any{}
	for _, h := range d.RecordHeaders() {
		m[h.Key] = string(h.Value)
	}
	return m
}
