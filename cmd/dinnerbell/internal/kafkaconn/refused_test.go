package kafkaconn

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// A token that a broker refuses with an error code alone, as Redpanda does, is not used until
// its end: the provider is asked for another one.
func TestTokenThatIsRefusedByCode(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":3600}`, asked.Add(1))
	}))
	t.Cleanup(provider.Close)
	b := startLoginBroker(t, "OAUTHBEARER")
	b.acceptOnly(func(first string) (string, string) {
		if strings.Contains(first, "token-1\x01") {
			return "", "revoked"
		}
		return "", ""
	})
	client := newLoginClient(t, b, "mechanism: OAUTHBEARER, oidc: {token_url: '"+provider.URL+"', client_id: bell, client_secret: s3cret-s3cret}")
	if err := client.Ping(t.Context()); err == nil {
		t.Error("the first token is accepted")
	}
	envtest.Until(t, envtest.Patience, func() error { return client.Ping(t.Context()) })
}
