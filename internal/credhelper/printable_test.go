package credhelper

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Zoë, 京都 ✓\n\tnext": "Zoë, 京都 ✓\n\tnext",
		"\x1b]0;title\x07":  "?]0;title?", "a\rb\x08\x7f": "a?b??", "\u009b31m": "?31m", "\u202egnp.exe": "?gnp.exe", "\x9b": "\ufffd",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

// Would catch a record, or a registry, that sends commands to the terminal of whoever looks at it.
func TestOthersTextIsShown(t *testing.T) {
	p := newPerson(t)
	const did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
	digest := "sha256:" + strings.Repeat("0", 64)
	r := newRegistry(t, "")
	devices := r.Config.Handler
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var answer any
		switch req.URL.Path {
		case "/v2/":
			answer = map[string]any{}
		case "/auth/token":
			answer = map[string]any{"token": "x"}
		case "/" + did:
			answer = map[string]any{"id": did, "service": []any{map[string]any{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": r.URL}}}
		case "/xrpc/com.atproto.repo.getRecord":
			answer = map[string]any{"uri": "at://" + did, "value": map[string]any{"repository": "app", "digest": digest, "createdAt": "\x1b[2J\x1b]52;c;eA==\x07", "mediaType": "m"}}
		case "/auth/hold":
			w.WriteHeader(http.StatusForbidden)
			answer = map[string]any{"error": "denied", "error_description": "no\x1b[1A\x1b[2Kyes"}
		default:
			devices.ServeHTTP(w, req)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	})
	out, errs, code := p.types("", "doctor", r.host+"/did_plc_aaaaaaaaaaaaaaaaaaaaaaaa/app@"+digest, "--plc", r.URL)
	if code == 0 || !strings.Contains(out, "pushed ?[2J?]52;c;eA==?, m") || strings.ContainsAny(out+errs, "\x1b\x07") {
		t.Errorf("doctor: %d %q %q", code, out, errs)
	}
	p.must("login", r.host, "--name", "laptop")
	out, errs, code = p.types("", "hold", "show")
	if code == 0 || !strings.Contains(errs, "no?[1A?[2Kyes") || strings.Contains(out+errs, "\x1b") {
		t.Errorf("hold show: %d %q %q", code, out, errs)
	}
}
