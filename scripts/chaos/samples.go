package main

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"dinnerbell/scripts/chaos/oracle"
)

// readSamples reads the samples of an earlier soak, from a file that may be compressed (.gz).
func readSamples(path string) (list []*sample, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read samples: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var in io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if in, err = gzip.NewReader(f); err != nil {
			return nil, fmt.Errorf("read samples %s: %w", path, err)
		}
	}
	for dec := json.NewDecoder(in); ; {
		one := &sample{}
		switch err := dec.Decode(one); {
		case errors.Is(err, io.EOF) && len(list) > 0:
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("read samples %s: %w", path, err)
		}
		list = append(list, one)
	}
}

// samplerOf returns a sampler with the samples of an earlier soak, whose length is the time
// of the last sample.
func samplerOf(list []*sample) *sampler {
	length := list[len(list)-1].At
	s := newSampler(&round{servers: &servers{opts: &options{seconds: int(length.Seconds())}}, daemons: []*daemonProcess{{name: "d0"}}})
	s.samples = list
	return s
}

// judgeSamples prints the slopes of an earlier soak, and fails if one exceeds its tolerance.
func judgeSamples(path string, out io.Writer) error {
	list, err := readSamples(path)
	if err != nil {
		return err
	}
	s, v := samplerOf(list), oracle.NewVerdict()
	s.checkSlopes(v)
	if _, err := io.WriteString(out, formatSlopes(s.results, s.round.stormDuration())); err != nil {
		return err
	}
	if v.Failed() {
		return errors.New(strings.Join(v.Problems, "\n"))
	}
	return nil
}
