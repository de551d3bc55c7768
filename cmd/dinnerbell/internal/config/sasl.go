package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The SASL mechanisms that kafka.sasl.mechanism may name, beside those with a user and a
// password.
const (
	OAuthBearer = "OAUTHBEARER"
	AWSMSKIAM   = "AWS_MSK_IAM"
)

// mechanisms are the SASL mechanisms that kafka.sasl.mechanism may name.
var mechanisms = []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", OAuthBearer, AWSMSKIAM}

// SASL credentials for the brokers.
type SASL struct {
	Mechanism string `yaml:"mechanism"` // one of mechanisms, in any case; "" (default): no SASL
	Username  Secret `yaml:"username"`  // rotates with the password, so it is re-read with it
	Password  Secret `yaml:"password"`

	// Of OAUTHBEARER: the token, or a program and its arguments that print it, or OIDC.
	Token        Secret   `yaml:"token"`
	TokenCommand []string `yaml:"token_command"`
	OIDC         OIDC     `yaml:"oidc"`
	Extensions   []string `yaml:"extensions"` // name=value each

	AWS AWS `yaml:"aws"` // of AWS_MSK_IAM

	runs   *sharedRuns // of the command that the mechanism has
	tokens *oidcTokens
}

// AWS is how AWS_MSK_IAM gets its credentials: from the keys, or from a program and its
// arguments that print them as AWS's credential_process does.
type AWS struct {
	AccessKeyID        Secret   `yaml:"access_key_id"`
	SecretAccessKey    Secret   `yaml:"secret_access_key"`
	SessionToken       Secret   `yaml:"session_token"` // of temporary credentials; default none
	CredentialsCommand []string `yaml:"credentials_command"`
}

// AWSCredentials are credentials as they are now.
type AWSCredentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// TokenKey returns the key, or the section, from which OAUTHBEARER has its token.
func (s SASL) TokenKey() string {
	switch {
	case len(s.TokenCommand) > 0:
		return "kafka.sasl.token_command"
	case s.OIDC.isSet():
		return keyOIDC
	}
	return "kafka.sasl.token"
}

// RevealToken returns the token of OAUTHBEARER. It reads the token anew, runs the command,
// or asks the token endpoint unless an earlier token can be used again. Errors begin with
// the key and never show the token.
func (s SASL) RevealToken() (token string, err error) {
	key := s.TokenKey()
	switch key {
	case "kafka.sasl.token_command":
		if token, err = s.runs.readLine(s.TokenCommand, "token"); err != nil {
			err = fmt.Errorf("%s: %w", key, err)
		}
	case keyOIDC:
		token, err = s.tokens.readToken(s.OIDC)
	default:
		token, err = s.Token.Reveal()
	}
	if err != nil {
		return "", err
	}
	s.rememberSecret(key, token)
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s: the token is empty, or has a blank or a character that no token has (RFC 6750, section 2.1)", key)
	}
	return token, nil
}

// ForgetToken has later connections ask the token endpoint for another token than one that a
// broker has refused.
func (s SASL) ForgetToken(token string) {
	if s.tokens != nil {
		s.tokens.discardToken(token)
	}
}

// rememberSecret has Hide know a secret that no Secret has revealed.
func (s SASL) rememberSecret(key, secret string) {
	if s.Token.seen != nil && secret != "" {
		s.Token.seen.addSecret(key, secret)
	}
}

// extensionName and extensionValue match the parts of an extension (RFC 7628, section 3.1).
var (
	extensionName  = regexp.MustCompile(`^[A-Za-z]+$`)
	extensionValue = regexp.MustCompile(`^[\t -~]*$`)
)

// ParseExtensions returns the SASL extensions of OAUTHBEARER by name.
func (s SASL) ParseExtensions() (map[string]string, error) {
	out := map[string]string{}
	for _, text := range s.Extensions {
		name, value, ok := strings.Cut(text, "=")
		if !ok || !extensionName.MatchString(name) || !extensionValue.MatchString(value) || strings.EqualFold(name, "auth") {
			return nil, fmt.Errorf("kafka.sasl.extensions: %q is not name=value, with a name of letters that is not auth", Excerpt(text))
		}
		out[name] = value
	}
	return out, nil
}

// RevealAWS returns the credentials of AWS_MSK_IAM, read anew or printed by the command.
// Errors begin with the key and never show what was printed.
func (s SASL) RevealAWS() (found AWSCredentials, err error) {
	if argv := s.AWS.CredentialsCommand; len(argv) > 0 {
		text, err := s.runs.readText(argv, "credentials")
		if err != nil {
			return found, fmt.Errorf("%s: %w", keyAWSCommand, err)
		}
		if found, err = parseCredentials(text, time.Now()); err != nil {
			return found, fmt.Errorf("%s: %s %w", keyAWSCommand, argv[0], err)
		}
		s.rememberSecret(keyAWSCommand, found.SecretAccessKey)
		s.rememberSecret(keyAWSCommand, found.SessionToken)
		return found, nil
	}
	if found.AccessKeyID, err = s.AWS.AccessKeyID.Reveal(); err != nil {
		return found, err
	}
	if found.SecretAccessKey, err = s.AWS.SecretAccessKey.Reveal(); err != nil {
		return found, err
	}
	found.SessionToken, err = s.AWS.SessionToken.Reveal()
	return found, err
}

const keyAWSCommand = "kafka.sasl.aws.credentials_command"

// parseCredentials reads the output of a credential_process
// (https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-sourcing-external.html).
// The error continues the program's name.
func parseCredentials(text string, now time.Time) (AWSCredentials, error) {
	var out struct {
		Version         int    `json:"Version"`
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string `json:"SecretAccessKey"`
		SessionToken    string `json:"SessionToken"`
		Expiration      string `json:"Expiration"`
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		// The parser's error may repeat a part of the text.
		return AWSCredentials{}, errors.New(`prints no JSON object such as {"Version": 1, "AccessKeyId": …, "SecretAccessKey": …, "SessionToken": …}`)
	}
	if out.Version != 1 {
		return AWSCredentials{}, fmt.Errorf("prints credentials of Version %d; Version 1 is known", out.Version)
	}
	if out.AccessKeyID == "" || out.SecretAccessKey == "" {
		return AWSCredentials{}, errors.New("prints no AccessKeyId, or no SecretAccessKey")
	}
	if end, err := time.Parse(time.RFC3339, out.Expiration); err == nil && !now.Before(end) {
		return AWSCredentials{}, fmt.Errorf("prints credentials that have expired at %s", end.UTC().Format(time.RFC3339))
	}
	return AWSCredentials{out.AccessKeyID, out.SecretAccessKey, out.SessionToken}, nil
}

// mechanismKeys names the keys below kafka.sasl that each mechanism takes; a name stands for
// all keys below it.
func mechanismKeys(mechanism string) []string {
	switch mechanism {
	case OAuthBearer:
		return []string{"token", "token_command", "oidc", "extensions"}
	case AWSMSKIAM:
		return []string{"aws"}
	}
	return []string{"username", "password"}
}

// setKeys returns the keys of kafka.sasl that have a value, but for the mechanism, sorted.
func (c *Config) setKeys() []string {
	var out []string
	for _, f := range newTree(c).children["kafka"].children["sasl"].allLeaves() {
		set := !f.value.IsZero()
		if secret, ok := reflect.TypeAssert[Secret](f.value); ok {
			set = secret.IsSet()
		} else if f.value.Kind() == reflect.Slice {
			set = f.value.Len() > 0
		}
		if key := strings.TrimPrefix(f.key, "kafka.sasl."); set && key != "mechanism" {
			out = append(out, key)
		}
	}
	return out
}

// checkSASL checks that the mechanism has the keys that it needs and no others, and reads
// each Secret once. It runs no command and asks no endpoint, as it makes no connection.
func (c *Config) checkSASL() []error {
	s, set := c.Kafka.SASL, c.setKeys()
	name := strings.ToUpper(s.Mechanism)
	switch {
	case name == "" && len(set) > 0:
		return []error{fmt.Errorf("kafka.sasl: has credentials but no mechanism; set kafka.sasl.mechanism to one of %s", strings.Join(mechanisms, ", "))}
	case !slices.Contains(mechanisms, name):
		return nil // no SASL, or the rules report it
	}
	var out []error
	for _, key := range set {
		if section, _, _ := strings.Cut(key, "."); !slices.Contains(mechanismKeys(name), section) {
			out = append(out, fmt.Errorf("kafka.sasl.%s: %s does not take it, but kafka.sasl.%s; remove it, or change kafka.sasl.mechanism", key, name, strings.Join(mechanismKeys(name), ", kafka.sasl.")))
		}
	}
	switch name {
	case OAuthBearer:
		return append(out, s.checkToken()...)
	case AWSMSKIAM:
		return append(out, s.checkAWS()...)
	}
	return append(out, needSecrets(name, map[string]Secret{"username": s.Username, "password": s.Password})...)
}

// needSecrets reports the secrets of some keys of kafka.sasl that are not set, or cannot be
// read.
func needSecrets(need string, secrets map[string]Secret) []error {
	var out []error
	for _, key := range slices.Sorted(maps.Keys(secrets)) {
		if !secrets[key].IsSet() {
			out = append(out, fmt.Errorf("kafka.sasl.%s: not set, and %s needs it", key, need))
		} else if _, err := secrets[key].Reveal(); err != nil {
			out = append(out, err)
		}
	}
	return out
}

// checkToken checks that OAUTHBEARER has one source of tokens.
func (s SASL) checkToken() []error {
	var out []error
	if _, err := s.ParseExtensions(); err != nil {
		out = append(out, err)
	}
	sources := 0
	for _, has := range []bool{s.Token.IsSet(), len(s.TokenCommand) > 0, s.OIDC.isSet()} {
		if has {
			sources++
		}
	}
	if sources != 1 {
		return append(out, fmt.Errorf("kafka.sasl: %s needs one of kafka.sasl.token, kafka.sasl.token_command and kafka.sasl.oidc, and %d of them are set", OAuthBearer, sources))
	}
	switch s.TokenKey() {
	case keyOIDC:
		out = append(out, s.OIDC.validate()...)
	case "kafka.sasl.token":
		out = append(out, needSecrets(OAuthBearer, map[string]Secret{"token": s.Token})...)
	}
	return out
}

// checkAWS checks that AWS_MSK_IAM has one source of credentials.
func (s SASL) checkAWS() []error {
	keys := s.AWS.AccessKeyID.IsSet() || s.AWS.SecretAccessKey.IsSet() || s.AWS.SessionToken.IsSet()
	switch command := len(s.AWS.CredentialsCommand) > 0; {
	case command && keys:
		return []error{fmt.Errorf("%s: there are keys below kafka.sasl.aws too; leave one of the two ways out", keyAWSCommand)}
	case command:
		return nil
	case !keys:
		return []error{fmt.Errorf("kafka.sasl: %s needs kafka.sasl.aws.access_key_id and kafka.sasl.aws.secret_access_key, or %s", AWSMSKIAM, keyAWSCommand)}
	}
	needed := map[string]Secret{"aws.access_key_id": s.AWS.AccessKeyID, "aws.secret_access_key": s.AWS.SecretAccessKey}
	if s.AWS.SessionToken.IsSet() {
		needed["aws.session_token"] = s.AWS.SessionToken
	}
	return needSecrets(AWSMSKIAM, needed)
}
