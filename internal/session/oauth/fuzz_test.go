package oauth

import (
	"strings"
	"testing"
)

// Would catch a scope that a server made up and that counts as more than it says.
func FuzzMissing(f *testing.F) {
	all := strings.Join(permissions(), " ")
	for _, seed := range []string{"", "atproto", all, "atproto transition:generic", "repo:*?action=create blob:*/*", "rpc:*?aud=*", "include:io.atcr.authFull", "repo:io.atcr.tag%00"} {
		f.Add(seed)
	}
	keys, err := OpenKeys(f.TempDir()+"/oauth.pem", nil)
	if err != nil {
		f.Fatal(err)
	}
	c, err := New(Config{BaseURL: "https://appview.test", Keys: keys})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, granted string) {
		missing := c.Missing(granted)
		if len(missing) > 0 {
			return
		}
		for _, part := range []string{"blob", "repo", "rpc"} {
			if !strings.Contains(granted, scopeGeneric) && !strings.Contains(granted, part) {
				t.Fatalf("%q has no %s and lacks nothing", granted, part)
			}
		}
	})
}
