package manual

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

type line struct {
	Look struct {
		Restaurant string `arg:"" help:".a restaurant"`
		Deep       bool   `help:"Look deeper."`
	} `cmd:"" help:"Look at one."`
	Secret struct{} `cmd:"" hidden:""`
}

// The page has what the help has, and groff (where it is installed) finds no fault.
func TestWrite(t *testing.T) {
	parser, err := kong.New(&line{}, kong.Name("dinnerbell"), kong.Description("Rings."))
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	if err := Write(&page, parser.Model); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`dinnerbell \- Rings` + "\n", ".SS look <restaurant>\nLook at one.\n", ".B <restaurant>\n" + `\&.a restaurant`, `.B \-\-deep`, ".SH EXIT STATUS"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, page.String())
		}
	}
	if strings.Contains(page.String(), "secret") {
		t.Error("the page shows a hidden command")
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("groff is not installed here: the page's macros are not checked")
	}
	cmd := exec.CommandContext(t.Context(), groff, "-man", "-Tutf8", "-ww", "-z")
	cmd.Stdin = strings.NewReader(page.String())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v %s", err, out)
	}
}
