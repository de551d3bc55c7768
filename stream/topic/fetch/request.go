package fetch

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// partitionFetch is a fetch of one partition. Its response is checked before it is
// decoded: the decoder allocates a hundred bytes for each byte of a response that lies
// about the lengths of its lists, and counts to four billion tags.
type partitionFetch struct{ *kmsg.FetchRequest }

// ResponseKind implements kmsg.Request.
func (r partitionFetch) ResponseKind() kmsg.Response {
	return &partitionResponse{kmsg.FetchResponse{Version: r.Version}}
}

// Timeout implements kmsg.TimeoutRequest: how long the broker may wait.
func (r partitionFetch) Timeout() int32 { return r.MaxWaitMillis }

type partitionResponse struct{ kmsg.FetchResponse }

// ReadFrom implements kmsg.Response.
func (r *partitionResponse) ReadFrom(src []byte) error {
	if err := checkFetchResponse(r.Version, src); err != nil {
		return err
	}
	return r.FetchResponse.ReadFrom(src)
}

const (
	// maxAborted bounds the aborted transactions of a response: fetchBytes hold the
	// control records of fewer.
	maxAborted = 1 << 16
	// maxTags bounds the tags of a part of a response, and the bytes of each.
	maxTags, maxTagBytes = 16, 64 << 10
)

// checkFetchResponse refuses a response that is not of one partition, or whose lists are
// longer than an honest one's.
// https://kafka.apache.org/protocol#The_Messages_Fetch
func checkFetchResponse(version int16, src []byte) error {
	b := responseReader{Reader: kbin.Reader{Src: src}, flexible: version >= 12}
	b.skip(version >= 1, 4) // throttle time
	b.skip(version >= 7, 2+4)
	if b.list("topics", 1) == 1 {
		if version >= 13 {
			b.skip(true, 16)
		} else {
			b.skip(true, b.length(2, false))
		}
		if b.list("partitions", 1) == 1 {
			b.skip(true, 4+2+8) // partition, error, high watermark
			b.skip(version >= 4, 8)
			b.skip(version >= 5, 8)
			if version >= 4 {
				for range b.list("aborted transactions", maxAborted) {
					b.skip(true, 8+8)
					b.skipTags()
				}
			}
			b.skip(version >= 11, 4) // preferred replica
			b.skip(true, b.length(4, true))
			b.skipTags()
		}
		b.skipTags()
	}
	b.skipTags()
	if b.err == nil && !b.Ok() {
		return kbin.ErrNotEnoughData
	}
	return b.err
}

// responseReader skips the fields of a response. After an error, and behind the end, it
// reads nothing.
type responseReader struct {
	kbin.Reader

	flexible bool // lengths are varints, one more than the length; parts end in tags
	err      error
}

func (b *responseReader) skip(there bool, n int) {
	if there {
		b.Span(n)
	}
}

// length reads the length of a text or of bytes, whose older form has two or four bytes.
func (b *responseReader) length(size int, null bool) int {
	var n int
	switch {
	case b.flexible:
		n = int(b.Uvarint()) - 1
	case size == 2:
		n = int(b.Int16())
	default:
		n = int(b.Int32())
	}
	if n == -1 && null {
		return 0
	}
	return n // Span refuses a negative one
}

// list reads the length of a list; 0 if it is longer than most.
func (b *responseReader) list(of string, most int) int {
	n := b.length(4, true)
	if n > most && b.err == nil {
		b.err = fmt.Errorf("the response claims %d %s, more than %d", n, of, most)
	}
	if n < 0 || b.err != nil || !b.Ok() {
		return 0
	}
	return n
}

// skipTags skips the tagged fields of a part of a response.
func (b *responseReader) skipTags() {
	if !b.flexible || b.err != nil || !b.Ok() {
		return
	}
	n := b.Uvarint()
	if n > maxTags {
		b.err = fmt.Errorf("the response claims %d tags, more than %d", n, maxTags)
		return
	}
	for range n {
		b.Uvarint() // which tag
		size := int(b.Uvarint())
		if size > maxTagBytes && b.err == nil {
			b.err = fmt.Errorf("the response claims a tag of %d bytes, more than %d", size, maxTagBytes)
		}
		b.Span(size)
	}
}
