package hold

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
)

// linkTTL is how long a URL to a blob's bytes is good, presigned or ours.
const linkTTL = 10 * time.Minute

var errBadLink = errors.New("the link is not valid")

// linker makes and checks `/d/<secret>/<hex>` links: one blob, one method, ten minutes, for storage that
// cannot presign. The secret is a message and its MAC: nothing is stored, every process of the hold's key
// accepts it.
type linker struct{ key []byte }

// link is what a secret says.
type link struct {
	Method  string     `json:"m"`
	Digest  oci.Digest `json:"d"`
	Viewer  syntax.DID `json:"v,omitempty"` // who may see it where it is not verified yet
	Expires int64      `json:"e"`           // Unix seconds
}

func newLinker(secret []byte) (*linker, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "atcr hold blob links", 32)
	if err != nil {
		return nil, fmt.Errorf("link key: %w", err)
	}
	return &linker{key: key}, nil
}

func (l *linker) mac(message string) []byte {
	h := hmac.New(sha256.New, l.key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

// path is the link's path on the hold.
func (l *linker) path(v link) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("hold: encode link: " + err.Error())
	}
	message := base64.RawURLEncoding.EncodeToString(raw)
	return "/d/" + message + "." + base64.RawURLEncoding.EncodeToString(l.mac(message)) + "/" + v.Digest.Hex()
}

// parse checks a secret for a method at a time.
func (l *linker) parse(secret, method string, now time.Time) (link, error) {
	message, mac, ok := strings.Cut(secret, ".")
	sum, err := base64.RawURLEncoding.DecodeString(mac)
	if !ok || err != nil || !hmac.Equal(sum, l.mac(message)) {
		return link{}, errBadLink
	}
	raw, err := base64.RawURLEncoding.DecodeString(message)
	if err != nil {
		return link{}, errBadLink
	}
	var v link
	if err := json.Unmarshal(raw, &v); err != nil {
		return link{}, errBadLink
	}
	// Who may GET may ask for the headers alone as well.
	if v.Method != method && (v.Method != http.MethodGet || method != http.MethodHead) {
		return link{}, errBadLink
	}
	if now.Unix() >= v.Expires {
		return link{}, fmt.Errorf("%w: it has expired", errBadLink)
	}
	return v, nil
}
