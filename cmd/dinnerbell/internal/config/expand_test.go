package config

import "testing"

func TestExpand(t *testing.T) {
	t.Parallel()
	file := write(t, "secret", "s3cret\n")
	env := Env{"A": "one", "EMPTY": "", "REF": "${A}", "LINE": "s3cret\r\n"}
	for in, want := range map[string]string{
		"plain":                    "plain",
		"${A}":                     "one",
		"x${A}y${A}z":              "xoneyonez",
		"${EMPTY}":                 "",
		"u:${LINE}@h":              "u:s3cret@h", // a Kubernetes secret made of a file
		"${file:" + file + "}":     "s3cret",
		"pa$$word $5 $":            "pa$$word $5 $",
		"$${A}":                    "${A}",
		"${REF}":                   "${A}", // not expanded again
		"u:${file:" + file + "}@h": "u:s3cret@h",
	} {
		if got, err := expandText(in, env); err != nil || got != want {
			t.Errorf("expand(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"${B}", "${A", "${}", "${file:/nope}", "${a b}", "${1A}"} {
		if got, err := expandText(in, env); err == nil {
			t.Errorf("expand(%q) = %q, want an error", in, got)
		}
	}
}
