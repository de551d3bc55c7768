package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// docs/schemas/asyncapi.yaml describes the topics under their default names, and each of
// its references leads to something.
func TestAsyncAPI(t *testing.T) {
	t.Parallel()
	const folder = "../../../../docs/schemas"
	text, err := os.ReadFile(filepath.Join(folder, "asyncapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var document map[string]any
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	var topics []string
	channels, _ := document["channels"].(map[string]any)
	for _, c := range channels {
		channel, _ := c.(map[string]any)
		address, _ := channel["address"].(string)
		topics = append(topics, address)
	}
	slices.Sort(topics)
	kafka := Defaults().Kafka
	if want := []string{kafka.Campaigns, kafka.DeadLetters, kafka.Notifications}; !slices.Equal(topics, want) {
		t.Errorf("channels of %v, want %v", topics, want)
	}
	references := 0
	visitReferences(document, func(to string) {
		references++
		path, isLocal := strings.CutPrefix(to, "#/")
		if !isLocal {
			if _, err := os.Stat(filepath.Join(folder, to)); err != nil {
				t.Error(err)
			}
			return
		}
		var at any = document
		for step := range strings.SplitSeq(path, "/") {
			section, _ := at.(map[string]any)
			at = section[step]
		}
		if at == nil {
			t.Errorf("%s leads nowhere", to)
		}
	})
	if references < 10 {
		t.Errorf("%d references", references)
	}
}

func visitReferences(at any, visit func(string)) {
	switch v := at.(type) {
	case []any:
		for _, item := range v {
			visitReferences(item, visit)
		}
	case map[string]any:
		for name, item := range v {
			if to, ok := item.(string); ok && name == "$ref" {
				visit(to)
			}
			visitReferences(item, visit)
		}
	}
}
