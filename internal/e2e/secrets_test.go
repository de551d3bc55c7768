package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// planting is a configuration with a secret of its own in each place, and all that came
// out of the program.
type planting struct {
	*testing.T
	dir     string
	secrets map[string]string // by place; not those of the environment alone
	env     []string
	config  string
	limit   time.Duration // of a command

	mu  sync.Mutex // guards out
	out map[string]string
}

func newPlanting(t *testing.T) *planting {
	t.Helper()
	return &planting{T: t, dir: envtest.Dir(t), limit: patience, secrets: map[string]string{}, out: map[string]string{}}
}

// secret returns the secret of a place. It has what an address must encode.
func (p *planting) secret(place string) string {
	p.secrets[place] = "plant-" + place + "-x9"
	return p.secrets[place] + "/+@'&%"
}

// plain is secret without what must be encoded.
func (p *planting) plain(place string) string {
	p.secret(place)
	return p.secrets[place] + "-0123456789"
}

// file writes a file and returns its path.
func (p *planting) file(name, text string) string {
	p.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.Fatal(err)
	}
	return path
}

// encryptKey encrypts a PEM key with a password, in the form that both systems read.
func (p *planting) encryptKey(keyFile, name, password string) string {
	p.Helper()
	text, err := os.ReadFile(keyFile)
	if err != nil {
		p.Fatal(err)
	}
	block, _ := pem.Decode(text)
	locked, err := x509.EncryptPEMBlock(rand.Reader, block.Type, block.Bytes, []byte(password), x509.PEMCipherAES256) //nolint:staticcheck // what the driver of Postgres reads
	if err != nil {
		p.Fatal(err)
	}
	return p.file(name, string(pem.EncodeToMemory(locked)))
}

func (p *planting) note(where, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out[where] += text
}

func (p *planting) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, envtest.Binary(p), append([]string{"-c", p.config}, args...)...)
	cmd.Env = append(testenv.ChildEnvironment(os.Environ()), p.env...)
	return cmd
}

// runCommands runs commands at the same time, however they end.
func (p *planting) runCommands(lines ...string) {
	p.Helper()
	envtest.Binary(p)
	var wg sync.WaitGroup
	for _, line := range lines {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(p.Context(), p.limit)
			defer cancel()
			out, err := p.command(ctx, strings.Fields(line)...).CombinedOutput()
			p.note("output of "+line, fmt.Sprintf("%s(%v)\n", out, err))
		})
	}
	wg.Wait()
}

// runDaemon runs the daemon until its log has a text, reads everything that HTTP shows,
// and ends the daemon with SIGQUIT, which prints all stacks.
func (p *planting) runDaemon(scheme, token, until string) {
	p.Helper()
	log := &logBuffer{}
	cmd := p.command(context.Background(), "run")
	cmd.Stderr, cmd.Stdout = log, log
	child, err := testenv.StartChild(cmd, "", syscall.SIGKILL)
	if err != nil {
		p.Fatal(err)
	}
	address := regexp.MustCompile(`\bhttp"?[=:]"?([0-9.:]+)`)
	envtest.Until(p, patience, func() error {
		if !child.Running() {
			p.Fatalf("the daemon has ended: %s", log.tail(1<<20))
		}
		if text := log.tail(1 << 20); !strings.Contains(text, until) || !address.MatchString(text) {
			return fmt.Errorf("no %q in the log: %s", until, text)
		}
		return nil
	})
	base := scheme + "://" + address.FindStringSubmatch(log.tail(1 << 20))[1]
	for _, path := range []string{"/", "/live/events", "/api/status", "/metrics", "/readyz", "/healthz", "/nothing"} {
		p.readPage(base+path, token)
		p.readPage(base+path, token+"-wrong")
	}
	p.runCommands("status", "status --json", "health", "checkpoint create", "verify", "subscribers restaurant-0", "rebuild", "explain campaign client-1", "doctor --json")
	for _, name := range []string{"cmdline", "comm", "status"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", child.PID(), name))
		if err != nil {
			p.Fatal(err)
		}
		p.note("/proc/PID/"+name, string(text))
	}
	if err := child.Signal(syscall.SIGQUIT); err != nil {
		p.Fatal(err)
	}
	<-child.Done()
	text := log.tail(64 << 20)
	if !strings.Contains(text, "SIGQUIT: quit") {
		p.Errorf("no stacks: %s", text)
	}
	p.note("log of the daemon", text)
}

// readPage keeps an answer, of a stream its first part.
func (p *planting) readPage(at, token string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		p.Fatal(err)
	}
	req.SetBasicAuth("u", token)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Do(req)
	if err != nil {
		p.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	most := int64(16 << 20)
	if strings.HasSuffix(at, "/live/events") {
		most = 4 << 10
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		p.Fatal(err)
	}
	p.note("answer to "+at, fmt.Sprint(resp.Header)+string(text))
}

// search looks for each secret, in each form, in all that came out and in the files that
// the program wrote.
func (p *planting) search() {
	p.Helper()
	err := filepath.WalkDir(filepath.Join(p.dir, "state"), func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !e.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(path)
		p.note("file "+path, string(text))
		return err
	})
	if err != nil {
		p.Fatal(err)
	}
	for place, secret := range p.secrets {
		for form, text := range secretForms(secret) {
			var shown []string
			for where, out := range p.out {
				if i := strings.Index(out, text); i >= 0 {
					shown = append(shown, fmt.Sprintf("%s: …%.200s", where, out[max(0, i-100):]))
				}
			}
			if len(shown) > 0 {
				p.Errorf("the secret of %s is shown (%s) in %d outputs, such as %s", place, form, len(shown), shown[0])
			}
		}
	}
	if len(p.out) < 5 {
		p.Errorf("only %d outputs were searched", len(p.out))
	}
}

// secretForms are the forms of a secret, which has no character that an encoding changes.
// Base64 has three, by the place of the secret in the encoded text.
func secretForms(secret string) map[string]string {
	forms := map[string]string{"as it is": secret, "hexadecimal": hex.EncodeToString([]byte(secret))}
	for before := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + secret))
		from := (before*8 + 5) / 6
		forms[fmt.Sprintf("base64, %d", before)] = strings.TrimRight(text, "=")[from : (before+len(secret))*8/6-1]
	}
	return forms
}

// repeatEverywhere is what a hostile server makes of a secret.
func repeatEverywhere(secret string) string {
	return "no: " + secret + " " + url.QueryEscape(secret) + " " + url.PathEscape(secret) + " " + fmt.Sprintf("%q", secret) + " " +
		base64.StdEncoding.EncodeToString([]byte(secret)) + " " + base64.RawURLEncoding.EncodeToString([]byte(secret)) + " " + hex.EncodeToString([]byte(secret))
}

// repeatingPostgres asks for the password and repeats it in a notice and in an error.
func repeatingPostgres(c net.Conn) {
	b := pgproto3.NewBackend(c, c)
	m, err := b.ReceiveStartupMessage()
	if _, asks := m.(*pgproto3.SSLRequest); asks && err == nil {
		if _, err = c.Write([]byte{'N'}); err == nil {
			_, err = b.ReceiveStartupMessage()
		}
	}
	if err != nil {
		return
	}
	b.Send(&pgproto3.AuthenticationCleartextPassword{})
	_ = b.SetAuthType(pgproto3.AuthTypeCleartextPassword)
	_ = b.Flush()
	sent, err := b.Receive()
	password, ok := sent.(*pgproto3.PasswordMessage)
	if err != nil || !ok {
		return
	}
	text := repeatEverywhere(password.Password)
	b.Send(&pgproto3.NoticeResponse{Severity: "WARNING", Code: "01000", Message: text})
	b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: text, Detail: text, Hint: text})
	_ = b.Flush()
}

// strangeTLS answers a request for TLS, of Postgres or a bare handshake, with a certificate
// that nobody trusts.
func strangeTLS(pair tls.Certificate, postgres bool) func(net.Conn) {
	return func(c net.Conn) {
		if postgres {
			if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
				return
			}
			_, _ = c.Write([]byte{'S'})
		}
		_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}).Handshake()
	}
}

// repeatingKafka is a broker that takes every mechanism, refuses each login and repeats it.
func (p *planting) repeatingKafka() string {
	p.Helper()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("PLAIN", "somebody", "another"))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(broker.Close)
	broker.ControlKey(int16(kmsg.SASLHandshake), func(r kmsg.Request) (kmsg.Response, error, bool) {
		broker.KeepControl()
		resp, _ := r.ResponseKind().(*kmsg.SASLHandshakeResponse)
		return resp, nil, true
	})
	broker.ControlKey(int16(kmsg.SASLAuthenticate), func(r kmsg.Request) (kmsg.Response, error, bool) {
		broker.KeepControl()
		req, _ := r.(*kmsg.SASLAuthenticateRequest)
		resp, _ := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		_, secret, _ := strings.Cut(string(req.SASLAuthBytes), "auth=Bearer ") // OAUTHBEARER
		if parts := strings.Split(string(req.SASLAuthBytes), "\x00"); secret == "" {
			secret = parts[len(parts)-1] // PLAIN
		}
		text := repeatEverywhere(strings.Trim(secret, "\x01")) + base64.StdEncoding.EncodeToString(req.SASLAuthBytes)
		resp.ErrorCode, resp.ErrorMessage = 58, &text
		return resp, nil, true
	})
	return broker.ListenAddrs()[0]
}

// repeatingProvider refuses each request for a token and repeats it, as it came and decoded.
func (p *planting) repeatingProvider() string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, secret, _ := r.BasicAuth()
		plain, _ := url.QueryUnescape(secret)
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprintf(w, `{"error": "invalid_client", "error_description": %q}`, repeatEverywhere(plain)+r.Header.Get("Authorization"))
	}))
	p.Cleanup(server.Close)
	return server.URL
}

// lookers are the commands that connect.
var lookers = []string{
	"config check", "setup", "doctor", "doctor --json", "audit", "dead-letters list", "campaigns", "cancel campaign", "rebuild --offline", "explain campaign client-1", "status", "health", "run --help",
}

// No secret comes out of the program: not in the log, at debug and in both formats, not over
// HTTP, not in the output of a command, in stacks, in the list of processes or in the state;
// wherever the secret stands in the configuration, and whatever the peers do.
func TestNoSecretComesOut(t *testing.T) {
	t.Parallel()
	closed := envtest.Serve(t, nil)
	echo := envtest.Serve(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	repeating := envtest.Serve(t, repeatingPostgres)
	for name, tc := range map[string]struct {
		config func(p *planting) string // without state and log
		until  string                   // of the daemon's log; "": the configuration is refused
		format string
	}{
		"nobody listens": {until: "connection refused", format: "text", config: func(p *planting) string {
			return "source: {url: 'postgres://u:" + url.QueryEscape(p.secret("source-userinfo")) + "@" + closed + "/de'}\n" +
				"sink: {url: \"host=127.0.0.1 port=1 user=u dbname=de password='" + p.plain("sink-keyword") + "'\"}\n" +
				"kafka: {brokers: ['" + closed + "'], sasl: {mechanism: PLAIN, username: u, password: " + p.plain("kafka-password") + "}}\n" +
				"http: {listen: '127.0.0.1:0', token: " + p.plain("token") + "}\n"
		}},
		"peers that echo": {until: "WARN", format: "json", config: func(p *planting) string {
			p.limit = 4 * time.Second // these peers keep some commands waiting; what they have written by then counts
			p.env = []string{"PLANTED=" + url.QueryEscape(p.secret("variable")), "DINNERBELL_KAFKA_SASL_PASSWORD=" + p.secret("kafka-variable"), "DINNERBELL_HTTP_TOKEN=" + p.plain("token-variable")}
			return "source: {url: 'postgres://" + echo + "/de?user=u&password=" + url.QueryEscape(p.secret("source-query")) + "'}\n" +
				"sink: {url: 'postgres://u:${PLANTED}@" + echo + "/de'}\n" +
				"kafka: {brokers: ['" + echo + "'], sasl: {mechanism: SCRAM-SHA-512, username: u}}\nhttp: {listen: '127.0.0.1:0'}\n"
		}},
		"peers that repeat": {until: "level=WARN", format: "text", config: func(p *planting) string {
			script := p.file("password.sh", "printf %s \""+p.plain("sink-command")+"\"\n")
			return "source: {url: \"postgres://u:${file:" + p.file("password", url.QueryEscape(p.secret("source-file"))+"\n") + "}@" + repeating + "/de?sslmode=disable\"}\n" +
				"sink: {url: 'postgres://u@" + repeating + "/de', password_command: [sh, " + script + "]}\n" +
				"kafka: {brokers: ['" + p.repeatingKafka() + "'], sasl: {mechanism: PLAIN, username: u, password: '${file:" + p.file("kafka", p.secret("kafka-file")+"\n") + "}'}}\nhttp: {listen: '127.0.0.1:0'}\n"
		}},
		"a command that fails": {until: "password_command", format: "json", config: func(p *planting) string {
			token := p.plain("command")
			return "source: {url: 'postgres://u@" + repeating + "/de', password_command: [sh, " + p.file("password.sh", "echo '"+token+"'; echo 'the token "+token+" has expired' >&2; exit 1\n") + "]}\n" +
				"sink: {url: 'postgres://u:" + p.plain("sink-userinfo") + "@" + repeating + "/de'}\nkafka: {brokers: ['" + closed + "']}\nhttp: {listen: '127.0.0.1:0'}\n"
		}},
		"a token that is refused": {until: "SASL_AUTHENTICATION_FAILED", format: "text", config: func(p *planting) string {
			return "source: {url: 'postgres://u@" + closed + "/de'}\nhttp: {listen: '127.0.0.1:0'}\n" +
				"kafka: {brokers: ['" + p.repeatingKafka() + "'], sasl: {mechanism: OAUTHBEARER, token: '${file:" + p.file("token", p.plain("bearer")+"\n") + "}'}}\n"
		}},
		"a provider that repeats": {until: "kafka.sasl.oidc", format: "json", config: func(p *planting) string {
			return "source: {url: 'postgres://u@" + closed + "/de'}\nhttp: {listen: '127.0.0.1:0'}\n" +
				"kafka: {brokers: ['" + p.repeatingKafka() + "'], sasl: {mechanism: OAUTHBEARER, oidc: {token_url: '" + p.repeatingProvider() + "', client_id: u, client_secret: '" + p.plain("client-secret") + "'}}}\n"
		}},
		"a token command that fails": {until: "token_command", format: "text", config: func(p *planting) string {
			token := p.plain("token-command")
			return "source: {url: 'postgres://u@" + closed + "/de'}\nhttp: {listen: '127.0.0.1:0'}\n" +
				"kafka: {brokers: ['" + p.repeatingKafka() + "'], sasl: {mechanism: OAUTHBEARER, token_command: [sh, " + p.file("token.sh", "echo '"+token+"'; echo 'the token "+token+" has expired' >&2; exit 1\n") + "]}}\n"
		}},
		"a credentials command that fails": {until: "credentials_command", format: "json", config: func(p *planting) string {
			key := p.plain("aws-command")
			return "source: {url: 'postgres://u@" + closed + "/de'}\nhttp: {listen: '127.0.0.1:0'}\n" +
				"kafka: {brokers: ['" + p.repeatingKafka() + "'], tls: {enabled: false}, sasl: {mechanism: AWS_MSK_IAM, aws: {credentials_command: [sh, " + p.file("aws.sh", `echo '{"Version": 1, "SecretAccessKey": "`+key+`"'; echo 'the key `+key+` has expired' >&2; exit 1`+"\n") + "]}}}\n"
		}},
		"keys that are refused": {until: "level=WARN", format: "text", config: func(p *planting) string {
			p.env = []string{"AWS_REGION=eu-central-1"}
			return "source: {url: 'postgres://u@" + closed + "/de'}\nhttp: {listen: '127.0.0.1:0'}\n" +
				"kafka: {brokers: ['" + p.repeatingKafka() + "'], sasl: {mechanism: AWS_MSK_IAM, aws: {access_key_id: AKIAEXAMPLE, secret_access_key: '" + p.plain("aws-secret") + "', session_token: '" + p.plain("aws-session") + "'}}}\n"
		}},
		"strangers' certificates": {until: "certificate", format: "json", config: func(p *planting) string {
			cert, key := envtest.Certificate(p.T, p.dir, "stranger")
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				p.Fatal(err)
			}
			locked := p.encryptKey(key, "postgres.key", p.plain("sslpassword"))
			return "source: {url: 'postgres://u:" + p.plain("source-tls") + "@" + envtest.Serve(p.T, strangeTLS(pair, true)) + "/de?sslmode=verify-full&sslcert=" + cert + "&sslkey=" + locked + "&sslpassword=" + p.secrets["sslpassword"] + "-0123456789'}\n" +
				"kafka: {brokers: ['" + envtest.Serve(p.T, strangeTLS(pair, false)) + "'], tls: {enabled: true, cert: " + cert + ", key: " + p.encryptKey(key, "kafka.key", p.plain("key-password")) + ", key_password: " + p.secrets["key-password"] + "-0123456789}}\n" +
				"http: {listen: '127.0.0.1:0', tls: {cert: " + cert + ", key: " + key + "}, token: '" + p.plain("token-tls") + "'}\n"
		}},
		"wrong passwords of keys": {format: "text", config: func(p *planting) string {
			cert, key := envtest.Certificate(p.T, p.dir, "own")
			return "source: {url: 'postgres://u@" + closed + "/de?sslmode=verify-full&sslcert=" + cert + "&sslkey=" + p.encryptKey(key, "postgres.key", "right") + "&sslpassword=" + p.plain("wrong-sslpassword") + "'}\n" +
				"kafka: {brokers: ['" + closed + "'], tls: {enabled: true, cert: " + cert + ", key: " + p.encryptKey(key, "kafka.key", "right") + ", key_password: " + p.plain("wrong-key-password") + "}}\n" +
				"http: {token: '" + p.plain("bad-token") + " with a blank'}\n"
		}},
		"an environment": {until: "level=WARN", format: "text", config: func(p *planting) string {
			p.env = []string{"PGPASSWORD=" + p.secret("environment"), "OTEL_EXPORTER_OTLP_HEADERS=Bearer " + p.plain("header") + ",authorization=" + p.plain("header-value") + "%zz", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://u:" + p.plain("endpoint") + "@%zz"}
			return "source: {url: 'postgres://u@" + repeating + "/de'}\nkafka: {brokers: ['" + closed + "']}\nhttp: {listen: '127.0.0.1:0'}\ntracing: {endpoint: 'http://" + closed + "'}\n"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlanting(t)
			text := tc.config(p)
			p.config = p.file("dinnerbell.yaml", text+"state: {dir: "+filepath.Join(p.dir, "state")+"}\nlog: {level: debug, format: "+tc.format+"}\n")
			p.runCommands(lookers...)
			if tc.until == "" {
				p.runCommands("run", "status")
				if out := p.out["output of run"]; !strings.Contains(out, "exit status 2") {
					t.Errorf("the configuration is not refused: %s", out)
				}
			} else {
				p.runDaemon(map[bool]string{true: "https", false: "http"}[strings.Contains(text, "listen: '127.0.0.1:0', tls")], p.token(), tc.until)
			}
			p.search()
		})
	}
}

// token returns the token of the listener, if the planting has one.
func (p *planting) token() string {
	for place, secret := range p.secrets {
		if strings.HasPrefix(place, "token") {
			return secret + "-0123456789"
		}
	}
	return "none"
}

// The same where everything works: what setup, the daemon and the commands write holds no
// secret.
func TestNoSecretComesOutOfADaemonAtWork(t *testing.T) {
	t.Parallel()
	p := newPlanting(t)
	db := envtest.Database(t)
	db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client-' || n, 'restaurant-0' FROM generate_series(1, 50) n`)
	password := p.plain("kafka")
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", password), kfake.SeedTopics(1, "campaigns"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	at := func(place string) string { // the server trusts everybody
		return strings.Replace(db.URL, "postgres@", "postgres:"+url.QueryEscape(p.secret(place))+"@", 1)
	}
	cert, key := envtest.Certificate(t, p.dir, "own")
	name := envtest.Name("secrets")
	p.config = p.file("dinnerbell.yaml", "source: {url: '"+at("source")+"', slot: "+name+"}\nsink: {url: '"+at("sink")+"'}\n"+
		"kafka: {brokers: ['"+broker.ListenAddrs()[0]+"'], group: "+name+", sasl: {mechanism: PLAIN, username: u, password: "+password+"}}\n"+
		"state: {dir: "+filepath.Join(p.dir, "state")+"}\nhttp: {listen: '127.0.0.1:0', tls: {cert: "+cert+", key: "+key+"}, token: "+p.plain("token")+"}\nlog: {level: debug}\n")
	p.runCommands("setup --print-sql")
	p.runCommands("setup")
	p.runDaemon("https", p.token(), "msg=ready")
	p.runCommands(slices.Concat(lookers, []string{"subscribers restaurant-0 --json", "checkpoint list --json", "audit --json"})...)
	p.search()
	if !strings.Contains(p.out["output of status"], "streaming") {
		t.Errorf("the daemon was not at work: %s", p.out["output of status"])
	}
}
