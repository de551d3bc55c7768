//go:build page

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"dinnerbell/internal/testenv/envtest"
)

// pagePatience bounds how long the page's test waits for an expected event: a browser beside
// the daemon and its servers needs much of a busy machine.
const pagePatience = 4 * time.Minute

// browser is one tab of a headless Chromium. It notes every request that leaves the
// page's origins, and every error on the console.
type browser struct {
	t      *testing.T
	ctx    context.Context
	stop   context.CancelFunc
	origin string // http://host:port/

	mu       sync.Mutex // guards what follows
	origins  []string   // that the tab has visited: a page that is left may still ask for something
	away     bool       // the daemon is down: failed requests are expected
	requests int
	faults   []string
}

// openBrowser starts Chromium with the tab on the page of an origin.
func openBrowser(t *testing.T, origin string) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, // root has no sandbox; the page is ours
		chromedp.WSURLReadTimeout(pagePatience), chromedp.Flag("disable-gpu", true), chromedp.Flag("hide-scrollbars", true), chromedp.Flag("lang", "en-US"))
	if path := os.Getenv("CHROMIUM"); path != "" {
		options = append(options, chromedp.ExecPath(path))
	}
	ctx, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	b := &browser{t: t, ctx: ctx, stop: stop, origin: origin, origins: []string{origin}}
	b.run(command(network.Enable, network.EnableParams{}), command(cdplog.Enable, cdp.Empty{}), command(runtime.Enable, cdp.Empty{}))
	if err := chromedp.Listen(ctx, b.note); err != nil {
		t.Fatal(err)
	}
	b.open()
	return b
}

// command is an action that gives the tab a command of the protocol.
func command[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

// run runs actions, which must end within the test's patience.
func (b *browser) run(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ended := b.watch()
	defer ended()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatalf("browser: %v", err)
	}
}

// watch ends the test's process of waiting for a browser that does not answer.
func (b *browser) watch() (ended func()) {
	timer := time.AfterFunc(pagePatience, func() {
		b.t.Error("the browser does not answer")
		b.stop()
	})
	return func() { timer.Stop() }
}

// evaluate returns the value of an expression, or of its promise.
func evaluate[T any](b *browser, expression string) T {
	b.t.Helper()
	ended := b.watch()
	defer ended()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("browser: %v", err)
	}
	return value
}

// open loads the page and waits until its script keeps it current.
func (b *browser) open() {
	b.t.Helper()
	b.run(chromedp.Navigate(b.origin), chromedp.WaitReady(chromedp.CSS(`body[data-live=yes]`)))
}

// visit opens the page under another address.
func (b *browser) visit(origin string) {
	b.t.Helper()
	b.mu.Lock()
	b.origins = append(b.origins, origin)
	b.mu.Unlock()
	b.origin = origin
	b.open()
}

// note notes what the tab asks for and complains about.
func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests++
		if u := e.Request.URL; !slices.ContainsFunc(b.origins, func(o string) bool { return strings.HasPrefix(u, o) }) && !strings.HasPrefix(u, "data:") {
			b.faults = append(b.faults, "a request left the origin: "+u)
		}
	case *runtime.EventExceptionThrown:
		b.faults = append(b.faults, "exception: "+fmt.Sprint(e.ExceptionDetails.Text, e.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" {
			b.faults = append(b.faults, fmt.Sprint("console: ", e.Type, " ", len(e.Args)))
		}
	case *cdplog.EventEntryAdded:
		if e.Entry.Level == cdplog.EntryLevelError && (!b.away || e.Entry.Source != cdplog.EntrySourceNetwork) {
			b.faults = append(b.faults, fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL))
		}
	}
}

// setAway tells whether the daemon is down.
func (b *browser) setAway(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

// checkFaults fails the test for everything that was noted so far.
func (b *browser) checkFaults() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		b.t.Error(f)
	}
	if b.faults = nil; b.requests < 5 {
		b.t.Errorf("%d requests were seen: the test sees too little", b.requests)
	}
}

// show sets size and scheme of the tab.
func (b *browser) show(width, height int64, scheme string) {
	b.t.Helper()
	b.run(command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600}),
		command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}))
}

// text returns the text of the first element of a selector.
func (b *browser) text(selector string) string {
	b.t.Helper()
	return evaluate[string](b, fmt.Sprintf(`(document.querySelector(%q) || {textContent: ""}).textContent.replace(/\s+/g, " ").trim()`, selector))
}

// awaitText waits until the text of an element contains all of some texts.
func (b *browser) awaitText(selector string, want ...string) {
	b.t.Helper()
	envtest.Until(b.t, pagePatience, func() error {
		got := b.text(selector)
		for _, w := range want {
			if !strings.Contains(got, w) {
				return fmt.Errorf("%s lacks %q: %s; the page's head: %s; connection: %s %s", selector, w, got, b.text("[data-section=head]"), b.text("#connection"), b.text("#lost"))
			}
		}
		return nil
	})
}

// pictures are the screenshots that the documentation shows.
var pictures = []string{"light", "dark", "phone-dark", "postgres", "halted"}

// shoot writes a screenshot for the documentation, if $UPDATE asks for it.
func (b *browser) shoot(name string, height int64) {
	b.t.Helper()
	if os.Getenv("UPDATE") == "" || !slices.Contains(pictures, name) {
		return
	}
	size := evaluate[[]float64](b, `[innerWidth, document.documentElement.scrollHeight]`)
	beyond := true
	shot, err := chromedp.Run(b.ctx, func(ctx context.Context, t *chromedp.Target) ([]byte, error) {
		r, err := cdp.Call(ctx, t, page.CaptureScreenshot, page.CaptureScreenshotParams{
			CaptureBeyondViewport: &beyond, Clip: &page.Viewport{Width: size[0], Height: min(size[1], float64(height)), Scale: 1}})
		return r.Data, err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if shot, err = shrink(shot); err != nil {
		b.t.Fatal(err)
	}
	dir := filepath.Join(envtest.Root(b.t), "docs", "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "page-"+name+".png"), shot, 0o644); err != nil {
		b.t.Fatal(err)
	}
	if len(shot) > 200_000 {
		b.t.Errorf("the screenshot %s has %d bytes", name, len(shot))
	}
}

// shrink reduces a picture to its 256 most frequent colours.
func shrink(shot []byte) ([]byte, error) {
	full, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		return nil, fmt.Errorf("read screenshot: %w", err)
	}
	counts := map[color.RGBA]int{}
	size := full.Bounds()
	at := func(x, y int) color.RGBA {
		r, g, b, _ := full.At(x, y).RGBA() // a page is opaque
		return color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 255}
	}
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			counts[at(x, y)]++
		}
	}
	common := slices.SortedFunc(maps.Keys(counts), func(a, b color.RGBA) int { return cmp.Compare(counts[b], counts[a]) })
	colours := color.Palette{}
	for _, c := range common[:min(len(common), 256)] {
		colours = append(colours, c)
	}
	nearest := map[color.RGBA]uint8{}
	for _, c := range common {
		nearest[c] = uint8(colours.Index(c))
	}
	small := image.NewPaletted(size, colours)
	for y := size.Min.Y; y < size.Max.Y; y++ {
		for x := size.Min.X; x < size.Max.X; x++ {
			small.SetColorIndex(x, y, nearest[at(x, y)])
		}
	}
	var out bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small)
	return out.Bytes(), err
}

// accessibility is what axe-core found.
type accessibility struct {
	Passes     int `json:"passes"`
	Violations []struct {
		ID    string `json:"id"`
		Help  string `json:"help"`
		Nodes string `json:"nodes"`
	} `json:"violations"`
}

// checkAccessible lets axe-core look at the page as it is shown.
func (b *browser) checkAccessible(what string) {
	b.t.Helper()
	axe, err := os.ReadFile(filepath.Join(envtest.Root(b.t), ".cache", "axe", "axe.min.js"))
	if err != nil {
		b.t.Fatalf("%v; scripts/install-tools.sh axe fetches it", err)
	}
	evaluate[chromedp.Void](b, string(axe)+"; 0")
	found := evaluate[accessibility](b, `axe.run({resultTypes: ["violations"]}).then(r => ({
  passes: r.passes.length,
  violations: r.violations.map(v => ({id: v.id, help: v.help, nodes: v.nodes.slice(0, 5).map(n => n.html.slice(0, 200) + " | " + n.failureSummary).join("\n")}))}))`)
	if found.Passes < 20 {
		b.t.Errorf("%s: axe-core has looked at %d rules only", what, found.Passes)
	}
	for _, v := range found.Violations {
		b.t.Errorf("%s: %s: %s\n%s", what, v.ID, v.Help, v.Nodes)
	}
}
