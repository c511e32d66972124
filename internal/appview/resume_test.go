package appview

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"atcr.io/internal/devnet"
	"atcr.io/internal/oci"
)

// breakOff begins to send a chunk and drops the connection once part of it was sent.
func (u user) breakOff(location string, sent []byte, size int64) {
	u.t.Helper()
	if strings.HasPrefix(location, "/") {
		location = u.base + location
	}
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(u.t.Context(), http.MethodPatch, location, r)
	if err != nil {
		u.t.Fatal(err)
	}
	req.ContentLength = size
	req.Header.Set("Authorization", u.authorization)
	go func() {
		_, _ = w.Write(sent)
		_ = w.CloseWithError(io.ErrUnexpectedEOF)
	}()
	res, err := http.DefaultClient.Do(req)
	if err == nil {
		_ = res.Body.Close()
		u.t.Fatalf("a request that broke off was answered with %s", res.Status)
	}
}

// Would catch an upload that must begin anew because a connection broke, or because AppView or hold were restarted
// in its course; and bytes that are in the blob twice.
func TestResume(t *testing.T) {
	t.Parallel()
	for what, restart := range map[string]func(n *network){
		"nothing":     func(*network) {},
		"the AppView": func(n *network) { n.restart() },
		"the hold":    func(n *network) { n.public.restart(t, nil) },
		"both":        func(n *network) { n.restart(); n.public.restart(t, nil) },
	} {
		t.Run(what+" restarted", func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			alice := n.as(n.alice, "alice.test/app")
			blob := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
			d := oci.FromBytes(blob)
			location := alice.must(202, alice.do(http.MethodPost, startPath, nil)).header.Get("Location")
			alice.breakOff(location, blob[:1<<20], int64(len(blob)))
			var at int
			eventually(t, "the upload can be gone on with", func() bool {
				got := alice.do(http.MethodGet, location, nil)
				at = rangeEnd(t, got)
				return got.status == 204 && at > 0
			})
			restart(n)
			got := alice.must(204, alice.do(http.MethodGet, location, nil))
			if now := rangeEnd(t, got); now < at || now > 1<<20 {
				t.Fatalf("%d bytes had arrived, and now %d", at, now)
			}
			eventually(t, "the rest is taken", func() bool { // once the hold, too, has seen that the first connection is gone
				at = rangeEnd(t, got)
				got = alice.do(http.MethodPatch, location, blob[at:], "Content-Range", fmt.Sprintf("%d-%d", at, len(blob)-1))
				if got.status == 202 {
					location = got.header.Get("Location")
					return true
				}
				if got.status != 416 && got.status != 429 {
					t.Fatalf("%d %s", got.status, got.body)
				}
				got = alice.must(204, alice.do(http.MethodGet, location, nil))
				return false
			})
			alice.must(201, alice.do(http.MethodPut, location+"?digest="+d.String(), nil))
			redirect := alice.must(307, alice.do(http.MethodGet, "/v2/alice.test/app/blobs/"+d.String(), nil))
			if got := request(t, http.MethodGet, redirect.header.Get("Location"), nil); got.body != string(blob) {
				t.Errorf("other bytes: %d of them", len(got.body))
			}
		})
	}
}

// rangeEnd is how many bytes a Range says that there are.
func rangeEnd(t *testing.T, a answer) int {
	t.Helper()
	_, end, _ := strings.Cut(a.header.Get("Range"), "-")
	n := 0
	for _, c := range end {
		n = n*10 + int(c-'0')
	}
	if n == 0 {
		return 0
	}
	return n + 1
}

// Would catch a registry token that reaches a hold, whatever the AppView asks of it or where it sends a client; and a
// person's token for their PDS that does.
func TestNoTokenOfOursReachesAHold(t *testing.T) {
	t.Parallel()
	for _, uploads := range []string{"auto", "always", "never"} {
		t.Run(uploads, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, "ATCR_DIRECT_UPLOADS="+uploads)
			n.useHold(n.bob, n.private.did)
			seen := make(chan http.Header, 1000)
			for _, h := range []*testHold{n.public, n.private} {
				h.misbehave(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
					seen <- r.Header.Clone()
					return false
				})
			}
			for account, name := range map[devnet.Account]string{n.alice: "alice.test/app", n.bob: "bob.test/app"} {
				u := n.as(account, name)
				image := newImage("one")
				for _, blob := range [][]byte{image.config, image.layer} {
					u.clientUpload(name, blob)
				}
				u.must(201, u.put(name, "1.0", image.manifest))
				u.pull(name, "1.0", image)
				u.must(202, u.do(http.MethodDelete, "/v2/"+name+"/manifests/1.0", nil))
			}
			if len(seen) < 10 {
				t.Fatalf("the holds were asked %d times", len(seen))
			}
			for len(seen) > 0 {
				header := <-seen
				if a := header.Get("Authorization"); a != "" && !isServiceToken(t, strings.TrimPrefix(a, "Bearer ")) || header.Get("Cookie") != "" {
					t.Errorf("a hold got %v", header)
				}
			}
		})
	}
}

// clientUpload pushes a blob as clients do that drop their credentials where the host changes, with an agent that is
// known for it.
func (u user) clientUpload(name string, blob []byte) {
	u.t.Helper()
	begun := u.must(202, u.do(http.MethodPost, "/v2/"+name+"/blobs/uploads/", nil, "User-Agent", "containerd/2.1"))
	location, authorization := begun.header.Get("Location"), u.authorization
	if !strings.HasPrefix(location, "/") {
		authorization = ""
	} else {
		location = u.base + location
	}
	got := request(u.t, http.MethodPut, location+"?digest="+oci.FromBytes(blob).String(), blob, "Authorization", authorization)
	if got.status != 201 {
		u.t.Fatalf("PUT %s: %d %s", location, got.status, got.body)
	}
}

// isServiceToken tells whether a JWT is made for a hold.
func isServiceToken(t *testing.T, token string) bool {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Error(err)
	}
	var claims struct{ Aud, Lxm string }
	if err := json.Unmarshal(raw, &claims); err != nil {
		return false // aud of ours is a list
	}
	return strings.HasPrefix(claims.Aud, "did:web:") && claims.Lxm != ""
}
