package cdc

import (
	"fmt"
	"hash"
	"hash/fnv"
)

// files sums up which files hold the rows.
type files struct{ hash.Hash64 }

func newFiles() files { return files{fnv.New64a()} }

// add takes a relation's oid and the number of its file.
func (f files) add(version string) { _, _ = f.Write([]byte(version + ";")) } // it never fails

// String gives the sum.
func (f files) String() string { return fmt.Sprintf("%016x", f.Sum64()) }
