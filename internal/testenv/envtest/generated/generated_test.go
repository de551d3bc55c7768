package generated

import "testing"

func TestReplacePart(t *testing.T) {
	t.Parallel()
	const document = "head\n<!-- begin keys made by x -->\nold\n<!-- end keys -->\ntail\n"
	got, err := replacePart(document, "keys", "new\nlines")
	if want := "head\n<!-- begin keys made by x -->\nnew\nlines\n<!-- end keys -->\ntail\n"; err != nil || got != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
	if again, err := replacePart(got, "keys", "new\nlines"); err != nil || again != got {
		t.Errorf("a second time: %v, %s", err, again)
	}
	if _, err := replacePart(document, "other", ""); err == nil {
		t.Error("a part that is not there is no error")
	}
	if line := firstDifference(document, got); line != "new" {
		t.Errorf("the first difference is %q", line)
	}
}
