package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// scripts/licenses.sh knows the licences that may be distributed, and refuses others, also
// where they are added to a known one.
func TestLicencesAreKnown(t *testing.T) {
	t.Parallel()
	const (
		mit = "The MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining\n// a copy of this software\n"
		bsd = "Redistribution and use in source and binary forms, with or\n * without modification, are permitted provided\n"
	)
	dir := envtest.Dir(t)
	for text, want := range map[string]string{
		mit: "MIT",
		bsd: "BSD",
		"Apache License\n   Version 2.0, January 2004\n":                                                                          "Apache-2.0",
		"Mozilla Public License Version 2.0\n\"Secondary License\" means the GNU General Public License":                          "MPL-2.0",
		"Permission to use, copy, modify, and/or distribute this software for any\npurpose with or without fee is hereby granted": "ISC",
		"GNU AFFERO GENERAL PUBLIC LICENSE Version 3":                                                                             "",
		"GNU Lesser General Public License":                                                                                       "",
		"Business Source License 1.1\nChange License: Apache License, Version 2.0":                                                "",
		mit + "\"Commons Clause\" License Condition v1.0":                                                                         "",
		"Server Side Public License":                                                                                              "",
		"":                                                                                                                        "",
	} {
		file := filepath.Join(dir, "LICENSE")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(filepath.Join(envtest.Root(t), "scripts", "licenses.sh"), "--name", file).Output()
		if got := strings.TrimSpace(string(out)); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}
