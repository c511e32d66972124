package session

import (
	"net/url"
	"strings"
	"testing"
)

// Would catch a way out of this AppView, by whatever a browser makes of a path.
func FuzzSafePath(f *testing.F) {
	for _, seed := range []string{"/", "/a?b#c", "//evil", "/\\evil", "/%2f/evil", "https://evil", "/\t//evil", "/..//evil", "/@evil", "/a:b"} {
		f.Add(seed)
	}
	base, err := url.Parse("https://appview.test/oauth/callback")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path string) {
		got := SafePath(path)
		if got != path && got != "/" {
			t.Fatalf("%q became %q", path, got)
		}
		// As browsers do: without tabs and line ends, with backslashes for slashes.
		seen := strings.NewReplacer("\t", "", "\n", "", "\r", "", "\\", "/").Replace(strings.TrimSpace(got))
		u, err := base.Parse(seen)
		if err != nil || u.Scheme != base.Scheme || u.Host != base.Host || u.User != nil {
			t.Fatalf("%q leads to %v, %v", path, u, err)
		}
	})
}

// Would catch an answer that is taken although it is not from the server that was asked.
func FuzzCheckAnswer(f *testing.F) {
	for _, seed := range []string{"", "code=a&iss=https://pds.test", "code=a&iss=https://evil.test", "error=access_denied", "error=x&iss=https://pds.test", "iss=https://pds.test&iss=https://evil.test&code=a", "%zz"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		query, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		err = checkAnswer(&signInRequest{Issuer: "https://pds.test"}, query)
		if err == nil && (query.Get("iss") != "https://pds.test" || query.Get("code") == "" || query.Get("error") != "") {
			t.Fatalf("%q is taken", raw)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\r\n") {
			t.Fatalf("%q: lines of others in %q", raw, err)
		}
	})
}
