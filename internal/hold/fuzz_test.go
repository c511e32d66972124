package hold

import (
	"strings"
	"testing"
)

// Would catch settings that are taken and mean nothing, less than nothing, or something else than they say.
func FuzzQuotas(f *testing.F) {
	for _, s := range []string{
		`{"tiers":{"free":"5GB","pro":100}}`, `{"tiers":{"a":"1.5TiB"},"default":"a","registered":"a"}`, `{"tiers":{"a":-1}}`, `{"tiers":{"a":"1e18"}}`,
		`{"tiers":{"a":null}}`, `{"tiers":{"":0},"default":""}`, `{} {}`, `{"tiers":{"a":1}}x`, `{"tiers":{"a":"0x1p-2"}}`, `{"tiers":{"a":"NaN"}}`, `{"tiers":{"a":1,"a":2}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !strings.HasPrefix(strings.TrimSpace(text), "{") {
			return // the name of a file
		}
		q, err := parseQuotas(text)
		if err != nil {
			return
		}
		if !strings.HasSuffix(strings.TrimRight(text, " \t\r\n"), "}") {
			t.Fatalf("%q: what follows the settings is passed over", text)
		}
		for _, name := range []string{q.Default, q.Registered} {
			if _, ok := q.Tiers[name]; name != "" && !ok {
				t.Fatalf("%q: no tier %q", text, name)
			}
		}
		for name, size := range q.Tiers {
			if again, err := ParseBytes(size.String()); size < 0 || err != nil || again/2 > size || size/2 > again {
				t.Fatalf("%q: %s is %d, written %s: %v", text, name, size, size, err)
			}
		}
	})
}
