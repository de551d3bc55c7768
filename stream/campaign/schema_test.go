package campaign

import (
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// beyondSchema are the refused messages that docs/schemas/campaign.schema.json cannot
// tell: relations between fields, and texts that are no text.
var beyondSchema = map[string]bool{
	"end is start": true, "end before start": true,
	"invalid UTF-8": true, "half a surrogate pair": true, "the other half": true, "two high halves": true,
}

// The schema accepts what the parser accepts, and refuses what the parser refuses.
func TestCampaignSchema(t *testing.T) {
	t.Parallel()
	schema, err := jsonschema.NewCompiler().Compile("../../docs/schemas/campaign.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	validate := func(value string) error {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(strings.TrimPrefix(value, "\ufeff")))
		if err != nil {
			return err
		}
		return schema.Validate(v)
	}
	accepted := acceptedMessages(t)
	accepted["the example"] = contractExample
	for name, value := range accepted {
		if err := validate(value); err != nil {
			t.Errorf("%s is accepted by the parser: %v", name, err)
		}
	}
	for _, c := range refusedMessages(t) {
		if err := validate(c.value); (err == nil) != beyondSchema[c.name] {
			t.Errorf("%s is refused by the parser; the schema: %v", c.name, err)
		}
	}
}
