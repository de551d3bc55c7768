package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/status"
)

// askLimit bounds a question to a daemon on this machine.
const askLimit = 2 * time.Second

// askDaemon asks the daemon over the socket in its folder. No daemon is no error.
func askDaemon(ctx context.Context, dir string) (version string, answers bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	body, err := control.Get(ctx, dir, "/api/status")
	if errors.Is(err, control.ErrNoDaemon) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	var r status.Report
	if err := json.Unmarshal(body, &r); err != nil {
		return "", false, fmt.Errorf("read answer of the daemon: %w", err)
	}
	return r.Version, true, nil
}

// answersHTTP reports whether a dinnerbell answers at an address of this machine.
func answersHTTP(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/api/status", http.NoBody)
	if err != nil {
		return false
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	var r status.Report
	return err == nil && json.Unmarshal(body, &r) == nil && r.Version != ""
}
