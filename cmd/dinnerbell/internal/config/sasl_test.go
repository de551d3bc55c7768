package config

import (
	"os"
	"strings"
	"testing"
	"time"
)

// loadSASL loads a configuration with these keys of kafka.sasl.
func loadSASL(t *testing.T, sasl string) *Config {
	t.Helper()
	cfg, err := Load(write(t, "f.yaml", "source: {url: 'postgres://u@db/de'}\nkafka: {brokers: ['127.0.0.1:1'], sasl: {"+sasl+"}}\n"), Env{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Each mechanism has its keys, all of them and no others.
func TestSASLIsValidated(t *testing.T) {
	t.Parallel()
	for sasl, want := range map[string]string{
		"mechanism: oauthbearer, token: a.b.c":                                                          "",
		"mechanism: OAUTHBEARER, token_command: [x], extensions: [a=b, logicalCluster=lkc-1]":           "",
		"mechanism: OAUTHBEARER, oidc: {token_url: 'https://i/t', client_id: i, client_secret: s}":      "",
		"mechanism: OAUTHBEARER, oidc: {token_url: 'http://[::1]:8/t', client_id: i, client_secret: s}": "",
		"mechanism: AWS_MSK_IAM, aws: {access_key_id: a, secret_access_key: s, session_token: t}":       "",
		"mechanism: aws_msk_iam, aws: {credentials_command: [x]}":                                       "",
		"token: a.b.c":           "kafka.sasl: has credentials but no mechanism",
		"mechanism: OAUTHBEARER": "needs one of kafka.sasl.token, kafka.sasl.token_command and kafka.sasl.oidc, and 0 of them are set",
		"mechanism: OAUTHBEARER, token: t, token_command: [x]":                                                      "and 2 of them are set",
		"mechanism: OAUTHBEARER, token: '${file:/nowhere/t}'":                                                       "kafka.sasl.token: expand ${file:/nowhere/t}",
		"mechanism: OAUTHBEARER, token: t, username: me":                                                            "kafka.sasl.username: OAUTHBEARER does not take it, but kafka.sasl.token, ",
		"mechanism: OAUTHBEARER, token: t, aws: {access_key_id: a}":                                                 "kafka.sasl.aws.access_key_id: OAUTHBEARER does not take it",
		"mechanism: OAUTHBEARER, token: t, extensions: [auth=x]":                                                    `kafka.sasl.extensions: "auth=x" is not name=value`,
		"mechanism: OAUTHBEARER, oidc: {token_url: 'https://i/t', client_id: i, client_secret: s, ca: /nowhere/ca}": "kafka.sasl.oidc.ca: open /nowhere/ca",
		"mechanism: OAUTHBEARER, oidc: {scope: x}":                                                                  "kafka.sasl.oidc.token_url: not set",
		"mechanism: OAUTHBEARER, oidc: {client_id: i}":                                                              "kafka.sasl.oidc.client_secret: not set",
		"mechanism: OAUTHBEARER, oidc: {token_url: 'http://i/t', client_id: i, client_secret: s}":                   "kafka.sasl.oidc.token_url: http would show the client secret",
		"mechanism: OAUTHBEARER, oidc: {token_url: 'https://u:zz9@i/t', client_id: i, client_secret: s}":            "user and password belong into",
		"mechanism: PLAIN, username: me, password: p, token: t":                                                     "kafka.sasl.token: PLAIN does not take it, but kafka.sasl.username, kafka.sasl.password",
		"mechanism: AWS_MSK_IAM":                                                    "needs kafka.sasl.aws.access_key_id and kafka.sasl.aws.secret_access_key, or",
		"mechanism: AWS_MSK_IAM, aws: {access_key_id: a}":                           "kafka.sasl.aws.secret_access_key: not set",
		"mechanism: AWS_MSK_IAM, aws: {access_key_id: a, credentials_command: [x]}": "leave one of the two ways out",
	} {
		if err := loadSASL(t, sasl).Validate(); (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "zz9")) {
			t.Errorf("%s: %v; want %q", sasl, err, want)
		}
	}
}

// The token of each connection is what the file or the command has then, and is hidden.
func TestTokenIsReadAnew(t *testing.T) {
	t.Parallel()
	file := write(t, "token", "")
	for _, sasl := range []string{"token: '${file:" + file + "}'", "token_command: [cat, '" + file + "']"} {
		cfg := loadSASL(t, "mechanism: OAUTHBEARER, "+sasl)
		for _, want := range []string{"first.token.x", "second.token.x"} {
			if err := os.WriteFile(file, []byte(want+"\r\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := cfg.Kafka.SASL.RevealToken(); err != nil || got != want {
				t.Errorf("%s: %q, %v", sasl, got, err)
			}
		}
		if text := cfg.Hide("first.token.x or second.token.x"); text != "[redacted] or [redacted]" {
			t.Errorf("shown: %s", text)
		}
		if err := os.WriteFile(file, []byte("hunter2\x01auth"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := cfg.Kafka.SASL.RevealToken(); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %q, %v", sasl, got, err)
		}
	}
}

// Credentials of AWS are those that the keys or the command have now.
func TestAWSCredentials(t *testing.T) {
	t.Parallel()
	file := write(t, "secret", "s-key-0")
	want := AWSCredentials{"AKIAEXAMPLE", "s-key-0", "session-0"}
	cfg := loadSASL(t, "mechanism: AWS_MSK_IAM, aws: {access_key_id: AKIAEXAMPLE, secret_access_key: '${file:"+file+"}', session_token: session-0}")
	if got, err := cfg.Kafka.SASL.RevealAWS(); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	command := func(text string) *Config {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return loadSASL(t, "mechanism: AWS_MSK_IAM, aws: {credentials_command: [cat, '"+file+"']}")
	}
	cfg = command("{\"Version\": 1,\n \"AccessKeyId\": \"AKIAEXAMPLE\", \"SecretAccessKey\": \"s-key-0\", \"SessionToken\": \"session-0\",\n \"Expiration\": \"2199-01-01T00:00:00Z\"}\n")
	if got, err := cfg.Kafka.SASL.RevealAWS(); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	if text := cfg.Hide("s-key-0 session-0"); text != "[redacted] [redacted]" {
		t.Errorf("shown: %s", text)
	}
	for text, want := range map[string]string{
		"":        "cat prints no credentials",
		"hunter2": "cat prints no JSON object",
		`{"Version": 2, "AccessKeyId": "hunter2"}`: "credentials of Version 2",
		`{"Version": 1, "AccessKeyId": "hunter2"}`: "no SecretAccessKey",
		`{"Version": 1, "AccessKeyId": "hunter2", "SecretAccessKey": "hunter2", "Expiration": "2001-01-01T00:00:00+01:00"}`: "cat prints credentials that have expired at 2000-12-31T23:00:00Z",
	} {
		if got, err := command(text).Kafka.SASL.RevealAWS(); err == nil || !strings.HasPrefix(err.Error(), "kafka.sasl.aws.credentials_command: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}

// A command that hangs is ended, and its error names the key; connections share the run.
func TestTokenCommandIsBounded(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]string{
		"echo hunter2; exec sleep 60":           "kafka.sasl.token_command: sh did not end within 300ms",
		"echo hunter2; echo denied >&2; exit 3": "kafka.sasl.token_command: sh: exit status 3: denied",
		"echo hunter2; echo more":               "kafka.sasl.token_command: sh prints more than one line, or no text; it must print the token alone",
		"head -c 70000 /dev/zero | tr '\\0' h":  "kafka.sasl.token_command: sh prints more than 65536 bytes",
		"true":                                  "kafka.sasl.token_command: sh prints no token",
	} {
		cfg := loadSASL(t, "mechanism: OAUTHBEARER, token_command: [sh, -c, \""+strings.ReplaceAll(script, `\`, `\\`)+"\"]")
		if cfg.Kafka.SASL.runs.patience = 10 * time.Second; strings.Contains(script, "sleep") {
			cfg.Kafka.SASL.runs.patience = 300 * time.Millisecond
		}
		if token, err := cfg.Kafka.SASL.RevealToken(); err == nil || err.Error() != want {
			t.Errorf("%s: %.20q, %v; want %s", script, token, err, want)
		}
	}
}
