package e2e

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/fetch"
	cdpnetwork "github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"atcr.io/test/components"
)

// browser is a headless Chromium with one page and a profile of its own.
type browser struct {
	t   *testing.T
	ctx context.Context
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(components.Path(t, "chromium")), chromedp.NoSandbox, chromedp.Flag("disable-gpu", true), chromedp.UserDataDir(t.TempDir()))
	allocated, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, closePage := chromedp.NewContext(allocated)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the browser is at %s:\n%s", try(ctx, chromedp.Location()), tail(try(ctx, chromedp.Evaluate[string]("document.body.innerText"))))
		}
		closePage()
		stop()
	})
	b := &browser{t, ctx}
	b.open("about:blank")
	return b
}

func try(ctx context.Context, action chromedp.Action[string]) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, action)
	if err != nil {
		return err.Error()
	}
	return text
}

const pageTimeout = 90 * time.Second // a machine with two cores may do much else

func run[T any](b *browser, what string, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageTimeout)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatalf("the browser: %s: %v", what, err)
	}
	return v
}

func (b *browser) open(url string) {
	b.t.Helper()
	if url == "about:blank" { // the first action starts the browser: its context may not end before
		if _, err := chromedp.Run(b.ctx, chromedp.Navigate(url)); err != nil {
			b.t.Fatalf("the browser: %v", err)
		}
		return
	}
	run(b, "open "+url, chromedp.Navigate(url))
}

// text is what the page shows.
func (b *browser) text() string {
	b.t.Helper()
	return run(b, "read the page", chromedp.Evaluate[string]("document.body.innerText"))
}

// until waits for a condition in JavaScript, over navigations.
func (b *browser) until(what, condition string) {
	b.t.Helper()
	deadline := time.Now().Add(pageTimeout)
	for {
		ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("Boolean("+condition+")"))
		cancel()
		if err == nil && ok {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the browser: %s does not come (%v)", what, err)
		}
		pause(b.t)
	}
}

// shows waits for a text.
func (b *browser) shows(text string) {
	b.t.Helper()
	b.until(text, fmt.Sprintf("document.body.innerText.includes(%q)", text))
}

// fill types into a field.
func (b *browser) fill(selector, value string) {
	b.t.Helper()
	b.until(selector, fmt.Sprintf("document.querySelector(%q)", selector))
	run(b, "type into "+selector, chromedp.SendKeys(chromedp.CSS(selector), value))
}

// press clicks a button whose text is one of names.
func (b *browser) press(names ...string) {
	b.t.Helper()
	find := fmt.Sprintf(`[...document.querySelectorAll("button, input[type=submit]")].find(e => !e.disabled && e.offsetParent && ["%s"].includes((e.innerText || e.value).trim()))`, strings.Join(names, `", "`))
	b.until("a button "+names[0], find)
	run(b, "press "+names[0], chromedp.Evaluate[bool]("(("+find+").click(), true)"))
}

// click clicks the element of a selector.
func (b *browser) click(selector string) {
	b.t.Helper()
	find := fmt.Sprintf("document.querySelector(%q)", selector)
	b.until(selector, find)
	run(b, "click "+selector, chromedp.Evaluate[bool]("("+find+".click(), true)"))
}

// alterRequests has the PDS's page say something else than it would: what its person cannot choose.
func (b *browser) alterRequests(from, to string) {
	b.t.Helper()
	paused := chromedp.Events(b.ctx, fetch.RequestPaused)
	enable := fetch.EnableParams{Patterns: []*fetch.RequestPattern{{URLPattern: "*/~api/*"}}}
	if _, err := chromedp.Call(b.ctx, fetch.Enable, enable); err != nil {
		b.t.Fatal(err)
	}
	go func() {
		for e, err := range paused {
			if err != nil {
				return // the browser has ended
			}
			answer := fetch.ContinueRequestParams{RequestID: e.RequestID}
			for _, entry := range e.Request.PostDataEntries {
				answer.PostData = append(answer.PostData, bytes.ReplaceAll(entry.Bytes, []byte(from), []byte(to))...)
			}
			_, _ = chromedp.Call(b.ctx, fetch.ContinueRequest, answer) // where it fails the page does not go on
		}
	}()
}

// asksFor waits for what the browser asks for whose URL contains part, from now on.
func (b *browser) asksFor(part string) func() string {
	b.t.Helper()
	sent := chromedp.Events(b.ctx, cdpnetwork.RequestWillBeSent)
	return func() string {
		b.t.Helper()
		for e, err := range sent {
			if err != nil {
				b.t.Fatal(err)
			}
			if strings.Contains(e.Request.URL, part) {
				return e.Request.URL
			}
		}
		return ""
	}
}
