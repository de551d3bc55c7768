package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"dinnerbell/internal/testenv/envtest"
)

// The service manager hears that the daemon serves, whether it is ready and why not,
// a sign of life each second, and that it ends.
func TestSystemdIsNotified(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.setup(1)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(envtest.Dir(t), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	d.env = append(os.Environ(), "NOTIFY_SOCKET="+socket.LocalAddr().String(), "WATCHDOG_USEC=60000000")
	d.start()
	messages := []string{}
	await := func(want string) {
		t.Helper()
		buffer := make([]byte, 64<<10)
		for until := time.Now().Add(patience); ; {
			_ = socket.SetReadDeadline(until) // a read behind it fails
			n, err := socket.Read(buffer)
			if err != nil {
				t.Fatalf("no message %q: %v; there were %q", want, err, messages)
			}
			messages = append(messages, string(buffer[:n]))
			if strings.Contains(messages[len(messages)-1], want) {
				return
			}
		}
	}
	await("READY=1")
	await("STATUS=ready\nWATCHDOG=1")
	if out := d.runCommand("health"); out != "" {
		t.Errorf("health of a ready daemon prints %q", out)
	}
	d.stop()
	await("STOPPING=1")
	if out, err := exec.Command(d.binary, "-c", d.config, "health").CombinedOutput(); err == nil || !bytes.Contains(out, []byte("no daemon is running")) {
		t.Errorf("health without a daemon: %v %s", err, out)
	}
}

// The unit has no fault that systemd can see, and its sandbox is tight.
func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed here: the unit is not checked")
	}
	text, err := os.ReadFile(filepath.Join(envtest.Root(t), "deploy/systemd/dinnerbell.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(envtest.Dir(t), "dinnerbell.service")
	local := strings.ReplaceAll(string(text), "/usr/bin/dinnerbell", envtest.Binary(t))
	local = strings.ReplaceAll(local, "man:dinnerbell(1)", "file:"+unit)
	if err := os.WriteFile(unit, []byte(local), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput(); err != nil || bytes.Contains(out, []byte("dinnerbell.service:")) {
		t.Errorf("verify: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", unit).CombinedOutput()
	exposure := regexp.MustCompile(`exposure level for dinnerbell.service: ([0-9.]+)`).FindSubmatch(out)
	if err != nil || exposure == nil {
		t.Fatalf("security: %v\n%s", err, out)
	}
	if level, _ := strconv.ParseFloat(string(exposure[1]), 64); level > 2 {
		t.Errorf("exposure level %s, want 2 at most:\n%s", exposure[1], out)
	}
}

// node returns what lies at a path of a YAML document: keys of maps and, as
// NAME=VALUE, elements of lists.
func node(t *testing.T, doc any, path ...string) any {
	t.Helper()
	for _, step := range path {
		key, value, isElement := strings.Cut(step, "=")
		found := false
		switch v := doc.(type) {
		case map[string]any:
			doc, found = v[step]
		case []any:
			for _, e := range v {
				if m, ok := e.(map[string]any); isElement && ok && m[key] == value {
					doc, found = e, true
				}
			}
		}
		if !found {
			t.Fatalf("nothing at %s of %q", step, path)
		}
	}
	return doc
}

// list is node for a list.
func list(t *testing.T, doc any, path ...string) []any {
	t.Helper()
	l, ok := node(t, doc, path...).([]any)
	if !ok {
		t.Fatalf("%q is no list", path)
	}
	return l
}

func readYAML(t *testing.T, name string) any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(envtest.Root(t), name))
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return doc
}

// checkConfig lets the binary check a configuration that a deployment brings.
func checkConfig(t *testing.T, text string, env ...string) {
	t.Helper()
	file := filepath.Join(envtest.Dir(t), "dinnerbell.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), envtest.Binary(t), "config", "check")
	cmd.Env = append(os.Environ(), append(env, "DINNERBELL_CONFIG="+file)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, text)
	}
}

// asList returns a list of strings of a service; empty if there is none.
func asList(service any, key string) (out []string) {
	m, _ := service.(map[string]any)
	list, _ := m[key].([]any)
	for _, v := range list {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

func hasKey(m map[string]any, key string) bool {
	_, ok := m[key]
	return ok
}

// What can be seen of compose, Kubernetes and the packages without an engine: files
// that parse and exist, configurations that the binary accepts, ports that agree, and
// probes that leave a long snapshot alone.
func TestDeploymentFiles(t *testing.T) {
	t.Parallel()
	root := envtest.Root(t)
	t.Run("compose", func(t *testing.T) {
		t.Parallel()
		doc := readYAML(t, "docker-compose.yml")
		config, ok := node(t, doc, "configs", "dinnerbell", "content").(string)
		if !ok {
			t.Fatal("no configuration")
		}
		checkConfig(t, strings.ReplaceAll(config, "$$", "$"), "POSTGRES_PASSWORD=x")
		services, _ := node(t, doc, "services").(map[string]any)
		for name, s := range services {
			if image, _ := s.(map[string]any)["image"].(string); image != "dinnerbell" && !regexp.MustCompile(`:v?\d+[0-9.]*$`).MatchString(image) {
				t.Errorf("service %s: image %q has no version", name, image)
			}
			depends, _ := s.(map[string]any)["depends_on"].(map[string]any)
			for _, on := range asList(s, "depends_on") {
				if services[on] == nil {
					t.Errorf("service %s depends on %s, which is none", name, on)
				}
			}
			for on := range depends {
				if services[on] == nil {
					t.Errorf("service %s depends on %s, which is none", name, on)
				}
			}
			for _, v := range asList(s, "volumes") {
				from, _, _ := strings.Cut(v, ":")
				if strings.HasPrefix(from, "./") {
					if _, err := os.Stat(filepath.Join(root, from)); err != nil {
						t.Errorf("service %s: %v", name, err)
					}
				} else if volumes, _ := node(t, doc, "volumes").(map[string]any); !hasKey(volumes, from) {
					t.Errorf("service %s: volume %s is not declared", name, from)
				}
			}
		}
	})
	t.Run("kubernetes", func(t *testing.T) {
		t.Parallel()
		for _, r := range list(t, readYAML(t, "deploy/kubernetes/kustomization.yaml"), "resources") {
			readYAML(t, "deploy/kubernetes/"+fmt.Sprint(r))
		}
		secrets := envtest.Dir(t)
		for _, name := range []string{"postgres-password", "kafka-password"} {
			if err := os.WriteFile(filepath.Join(secrets, name), []byte("x\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(filepath.Join(root, "deploy/kubernetes/dinnerbell.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		checkConfig(t, strings.ReplaceAll(string(text), "/run/secrets/dinnerbell", secrets))
		set := node(t, readYAML(t, "deploy/kubernetes/statefulset.yaml"), "spec", "template", "spec")
		container := node(t, set, "containers", "name=dinnerbell")
		if path := node(t, container, "livenessProbe", "httpGet", "path"); path != "/healthz" {
			t.Errorf("the liveness probe asks %v: it would end a daemon that copies a large table", path)
		}
		if path := node(t, container, "readinessProbe", "httpGet", "path"); path != "/readyz" {
			t.Errorf("the readiness probe asks %v", path)
		}
		for _, mount := range list(t, container, "volumeMounts") {
			name := fmt.Sprint(node(t, mount, "name"))
			if name == "state" {
				node(t, readYAML(t, "deploy/kubernetes/statefulset.yaml"), "spec", "volumeClaimTemplates")
				continue
			}
			node(t, set, "volumes", "name="+name)
		}
	})
	t.Run("package", func(t *testing.T) {
		t.Parallel()
		text, err := os.ReadFile(filepath.Join(root, "deploy/package/dinnerbell.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		checkConfig(t, string(text), "DINNERBELL_PASSWORD=x")
	})
}
