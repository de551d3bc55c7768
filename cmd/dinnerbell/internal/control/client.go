package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// ErrNoDaemon reports that nobody answers on the socket.
var ErrNoDaemon = errors.New("no daemon is running")

// errCut reports an answer that ended before its last line.
var errCut = errors.New("the daemon ended in the middle of it")

// RemoteError is the error of an action in the daemon.
type RemoteError struct {
	Message string
	Exit    int
}

// Error returns the message as the daemon wrote it.
func (e *RemoteError) Error() string { return e.Message }

// Get returns the answer of one read-only path, over the socket of the daemon that
// runs on stateDir.
func Get(ctx context.Context, stateDir, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := requestDaemon(ctx, stateDir, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var body bytes.Buffer
	if _, err := io.Copy(&body, io.LimitReader(resp.Body, 16<<20)); err != nil {
		return nil, fmt.Errorf("read answer of the daemon: %w", err)
	}
	return body.Bytes(), nil
}

// ReplyHandler handles the lines of an answer. Each field may be nil.
type ReplyHandler struct {
	// Progress is called with the progress of the action; total 0: unknown.
	Progress func(stage string, done, total int64)
	// Item takes each element of a listing; its error ends the action.
	Item func(json.RawMessage) error
	// Result is a pointer that the result is decoded into.
	Result any
}

// Do asks the running daemon for an action, and returns when it is done. args
// becomes JSON. When ctx ends, so does the action. Errors: ErrNoDaemon; a
// RemoteError with the exit code of the action's error; errCut.
func Do(ctx context.Context, stateDir, name string, args any, h ReplyHandler) error {
	body, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("ask daemon: %w", err)
	}
	resp, err := requestDaemon(ctx, stateDir, http.MethodPost, controlPath+name, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := json.NewDecoder(resp.Body)
	for {
		var line answerLine
		if err := lines.Decode(&line); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: %s: %w; see its log", errCut, name, err)
		}
		if done, err := h.handleLine(&line); done || err != nil {
			return err
		}
	}
}

// handleLine handles one line; done reports whether it was the last.
func (h *ReplyHandler) handleLine(line *answerLine) (done bool, err error) {
	switch {
	case line.Error != nil:
		return true, &RemoteError{Message: line.Error.Message, Exit: line.Error.Exit}
	case line.Progress != nil:
		if h.Progress != nil {
			h.Progress(line.Progress.Stage, line.Progress.Done, line.Progress.Total)
		}
		return false, nil
	case line.Item != nil:
		if h.Item != nil {
			return false, h.Item(line.Item)
		}
		return false, nil
	case h.Result != nil && line.Result != nil:
		if err := json.Unmarshal(line.Result, h.Result); err != nil {
			return true, fmt.Errorf("read answer of the daemon: %w", err)
		}
	}
	return true, nil
}

// requestDaemon sends one request over the socket; any answer but 200 is an error.
func requestDaemon(ctx context.Context, stateDir, method, path string, body []byte) (*http.Response, error) {
	socket, err := socketPath(stateDir)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://dinnerbell"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask daemon: %w", err)
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w with state.dir %s (nobody listens on %s); start one with: dinnerbell run", ErrNoDaemon, stateDir, socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("ask daemon: %w; the socket is for the user that runs it", err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil, fmt.Errorf("ask daemon: %w", errCut) // before it began to answer
	case err != nil:
		return nil, fmt.Errorf("ask daemon: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	return nil, errors.Join(fmt.Errorf("ask daemon: %s: %s", resp.Status, bytes.TrimSpace(text)), err, resp.Body.Close())
}
