package credhelper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"rsc.io/qr"
)

// loginOptions are what `login` may be told.
type loginOptions struct {
	Name     string // of this machine
	Browser  func(url string) error
	QR       bool
	Terminal bool // progress may be drawn over
}

// errRefused says that the person said no.
var errRefused = errors.New("the request was refused: nobody was signed in")

// login signs somebody in: shows a code, waits for its approval in a browser, and keeps the secret.
func (h *Helper) login(ctx context.Context, registry string, o loginOptions, out io.Writer) (Account, error) {
	if _, err := h.load(); err != nil { // before anybody is asked to approve
		return Account{}, err
	}
	code, err := h.begin(ctx, registry, o.Name, runtime.GOOS+"/"+runtime.GOARCH)
	if err != nil {
		return Account{}, err
	}
	sayTo(out, "To sign in to %s, open this page and compare the code:\n\n  %s\n  code: %s\n\n", registry, code.Complete, code.UserCode)
	if o.QR {
		_, _ = io.WriteString(out, drawQR(code.Complete))
	}
	if o.Browser != nil {
		if err := o.Browser(code.Complete); err != nil {
			sayTo(out, "No browser could be opened here (%v): open the page on any machine.\n", err)
		}
	}
	token, err := h.wait(ctx, registry, code, o.Terminal, out)
	if err != nil {
		return Account{}, err
	}
	a := Account{Registry: registry, Handle: token.Handle, DID: token.DID, Device: o.Name, Kind: kindDevice, Since: h.Now().UTC()}
	return a, h.replace(ctx, &a, token.Secret, out)
}

// replace keeps a new account, and revokes the device that it takes the place of.
func (h *Helper) replace(ctx context.Context, a *Account, secret string, out io.Writer) error {
	old := ""
	note := ""
	err := h.change(func(s *state) (err error) {
		for _, known := range s.of(a.Registry) {
			if known.key() == a.key() && known.Kind == kindDevice {
				old, _ = h.secret(known) // one that cannot be read cannot be revoked from here
			}
		}
		if note, err = h.keep(s, a, secret, interactivePatience); err != nil {
			return err
		}
		s.add(*a)
		return nil
	})
	if err != nil {
		// What cannot be kept must not stay open.
		return errors.Join(fmt.Errorf("the secret cannot be kept: %w", err), h.revoke(context.WithoutCancel(ctx), a.Registry, secret))
	}
	if old != "" && old != secret {
		_ = h.revoke(ctx, a.Registry, old) // it stays in the settings page's list
	}
	if note != "" {
		sayTo(out, "%s\n", note)
	}
	return nil
}

// wait polls until somebody decided, the code expired, or ctx ended.
func (h *Helper) wait(ctx context.Context, registry string, code deviceCode, terminal bool, out io.Writer) (deviceToken, error) {
	interval := time.Duration(max(code.Interval, 1)) * time.Second
	ends := time.Now().Add(time.Duration(code.ExpiresIn) * time.Second)
	progress := newProgress(out, terminal)
	defer progress.end()
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for next := time.Now().Add(interval); ; {
		select {
		case <-ctx.Done():
			return deviceToken{}, ctx.Err()
		case now := <-ticker.C:
			progress.draw(ends.Sub(now))
			if now.Before(next) {
				continue
			}
		}
		token, err := h.poll(ctx, registry, code.DeviceCode)
		next = time.Now().Add(interval)
		e, answered := errors.AsType[*callError](err)
		switch {
		case err == nil:
			return token, nil
		case ctx.Err() != nil:
			return deviceToken{}, ctx.Err()
		case answered && e.Code == "authorization_pending":
		case answered && (e.Code == "slow_down" || e.Status == http.StatusTooManyRequests):
			interval += 5 * time.Second // RFC 8628, section 3.5
			next = next.Add(5 * time.Second)
		case answered && e.Code == "access_denied":
			return deviceToken{}, errRefused
		case answered && e.Code == "expired_token":
			return deviceToken{}, errors.New("nobody approved in time: type the command again")
		case answered && e.Status < 500:
			return deviceToken{}, err
		case time.Now().After(ends): // a server that is down for a moment is asked again
			return deviceToken{}, err
		}
	}
}

// progress is one line that says how long there is.
type progress struct {
	out      io.Writer
	terminal bool
	drawn    string
}

func newProgress(out io.Writer, terminal bool) *progress {
	if !terminal {
		_, _ = io.WriteString(out, "Waiting for your approval. Ctrl-C ends this.\n")
	}
	return &progress{out: out, terminal: terminal}
}

func (p *progress) draw(left time.Duration) {
	if !p.terminal {
		return
	}
	left = max(left, 0)
	text := fmt.Sprintf("Waiting for your approval: %d:%02d left. Ctrl-C ends this.", int(left.Minutes()), int(left.Seconds())%60)
	if text != p.drawn {
		_, _ = io.WriteString(p.out, "\r\x1b[K"+text)
		p.drawn = text
	}
}

func (p *progress) end() {
	if p.drawn != "" {
		_, _ = io.WriteString(p.out, "\r\x1b[K")
	}
}

// drawQR is text as a QR code of half blocks, dark on light whatever the terminal's colours are.
func drawQR(text string) string {
	code, err := qr.Encode(text, qr.L)
	if err != nil { // too long: the URL stands above
		return ""
	}
	const quiet = 2
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		b.WriteString("  \x1b[30;107m")
		for x := -quiet; x < code.Size+quiet; x++ {
			top, bottom := code.Black(x, y), code.Black(x, y+1)
			switch {
			case top && bottom:
				b.WriteString("█")
			case top:
				b.WriteString("▀")
			case bottom:
				b.WriteString("▄")
			default:
				b.WriteString(" ")
			}
		}
		b.WriteString("\x1b[0m\n")
	}
	return b.String() + "\n"
}

// machineName is what this machine calls itself.
func machineName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "a machine without a name"
	}
	return name
}
