package control

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// The daemon answers any request on its socket, and its answer ends with a last line.
func FuzzServeAction(f *testing.F) {
	for _, body := range []string{"", `{"campaign":"x"}`, `{"campaign":7}`, `[]`, `{`, "null"} {
		f.Add("/control/read", []byte(body))
	}
	f.Add("/control/", []byte("{}"))
	f.Add("/control/../x", []byte{})
	f.Add("/other", []byte{})
	readOnly := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	actions := map[string]Action{"read": func(_ context.Context, c *Call) (any, error) {
		var args struct {
			Campaign string   `json:"campaign"`
			Lanes    []int32  `json:"lanes"`
			Offset   *int64   `json:"offset"`
			Words    []string `json:"words"`
		}
		if err := c.Args(&args); err != nil {
			return nil, err
		}
		return args, c.Item(args.Campaign)
	}}
	h := NewHandler(f.Context(), readOnly, actions, testExitCode, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://dinnerbell/", bytes.NewReader(body))
		r.URL.Path = path
		w := &deadlineRecorder{httptest.NewRecorder()}
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK || path != "/control/read" {
			return
		}
		lines := bytes.Split(bytes.TrimSpace(w.Body.Bytes()), []byte("\n"))
		var last answerLine
		if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil || (last.Result == nil) == (last.Error == nil) {
			t.Errorf("%s: the answer ends with %s: %v", body, lines[len(lines)-1], err)
		}
	})
}

// A command reads any answer on the socket to a last line or an error.
func FuzzHandleLine(f *testing.F) {
	for _, line := range []string{`{"progress":{"stage":"snapshot","done":1,"total":2}}`, `{"item":{"a":1}}`, `{"result":{"a":1}}`, `{"result":7}`, `{"error":{"message":"x","exit":3}}`, `{}`, `null`, `{"error":{"exit":1e9}}`, `{"item":null}`} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		lines := json.NewDecoder(bytes.NewReader(text))
		var result struct {
			A int `json:"a"`
		}
		h := ReplyHandler{Progress: func(string, int64, int64) {}, Item: func(item json.RawMessage) error {
			if !json.Valid(item) {
				t.Errorf("an item that is no JSON: %q", item)
			}
			return nil
		}, Result: &result}
		for range len(text) + 1 {
			var line answerLine
			if lines.Decode(&line) != nil {
				return
			}
			if done, err := h.handleLine(&line); done || err != nil {
				return
			}
		}
		t.Error("more lines than bytes")
	})
}

// deadlineRecorder is a recorder that takes the deadlines of a connection.
type deadlineRecorder struct{ *httptest.ResponseRecorder }

// SetReadDeadline does nothing: a recorder has no connection.
func (*deadlineRecorder) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing: a recorder has no connection.
func (*deadlineRecorder) SetWriteDeadline(time.Time) error { return nil }
