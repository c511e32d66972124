package credhelper

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/identity"
	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
)

// finding is one link of the chain from a name to its bytes.
type finding struct {
	Link  string `json:"link"`
	OK    bool   `json:"ok"`
	Found string `json:"found"`
	// Whose it is to mend, where it fails.
	Whose string `json:"whose,omitempty"`
}

// doctor walks from an image's name to its bytes, and stops at the first link that fails.
type doctor struct {
	helper   *Helper
	resolver *identity.Resolver
	upstream xrpc.Upstream
	tell     func(finding)
	private  bool // a registry on this machine: http and loopback are what one expects

	registry  string
	name      oci.Name
	reference oci.Reference
	account   *Account
	token     string // of the registry
	owner     *identity.Identity
	record    atcr.Manifest
	raw       []byte // the manifest
}

// errBroken ends the walk: the finding was told.
var errBroken = errors.New("the image cannot be had: see above")

const maxChildren = 20

// newDoctor reads HOST/OWNER/REPOSITORY[:TAG or @DIGEST].
func (h *Helper) newDoctor(image, plc, handles string, tell func(finding)) (*doctor, error) {
	registry, rest, ok := strings.Cut(strings.TrimPrefix(image, "https://"), "/")
	reference := "latest"
	if name, digest, has := strings.Cut(rest, "@"); has {
		rest, reference = name, digest
		if i := strings.LastIndex(rest, ":"); i > strings.LastIndex(rest, "/") {
			rest = rest[:i]
		}
	} else if i := strings.LastIndex(rest, ":"); i > strings.LastIndex(rest, "/") {
		rest, reference = rest[:i], rest[i+1:]
	}
	d := &doctor{helper: h, tell: tell, registry: strings.ToLower(registry), private: strings.HasPrefix(baseURL(registry), "http://")}
	var err error
	if !ok || !strings.Contains(rest, "/") {
		return nil, errors.New("name the image whole: HOST/OWNER/REPOSITORY:TAG")
	}
	if d.name, err = oci.ParseName(rest); err == nil {
		d.reference, err = oci.ParseReference(reference)
	}
	if err != nil {
		return nil, fmt.Errorf("%s is not the name of an image: %s", image, oci.AsError(err).Message)
	}
	d.resolver = identity.New(identity.Config{
		PLCURL: plc, HandleResolverURL: handles, AllowPrivate: d.private, UserAgent: clientID, Logger: slog.New(slog.DiscardHandler),
	})
	d.upstream = xrpc.Upstream{Client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: d.private, Timeout: callTimeout, UserAgent: clientID})}
	return d, nil
}

// run walks. Errors: errBroken, or that of ctx.
func (d *doctor) run(ctx context.Context) error {
	for _, link := range []func(context.Context) error{
		d.checkRegistry, d.checkSignIn, d.checkName, d.checkRecord, d.checkManifest, d.checkHold, d.checkBytes,
	} {
		if err := link(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *doctor) good(link, format string, args ...any) error {
	d.tell(finding{Link: link, OK: true, Found: fmt.Sprintf(format, args...)})
	return nil
}

func (d *doctor) bad(ctx context.Context, link, whose, format string, args ...any) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.tell(finding{Link: link, Found: fmt.Sprintf(format, args...), Whose: whose})
	return errBroken
}

func (d *doctor) operator() string { return "the operator of " + d.registry }

func (d *doctor) checkRegistry(ctx context.Context) error {
	res, err := d.ask(ctx, http.MethodGet, "/v2/", "")
	if err != nil {
		return d.bad(ctx, "registry", d.operator()+", or the network between", "%s cannot be reached: %v", d.registry, unwrapURL(err))
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusUnauthorized {
		return d.bad(ctx, "registry", d.operator(), "%s answers /v2/ with %s", d.registry, res.Status)
	}
	return d.good("registry", "%s answers", d.registry)
}

// checkSignIn fetches a registry token. Nobody being signed in is no fault: public images need nobody.
func (d *doctor) checkSignIn(ctx context.Context) error {
	s, err := d.helper.load()
	if err != nil {
		return d.bad(ctx, "sign-in", "you", "%v", err)
	}
	user, secret := "", ""
	if a, ok := s.pick(d.registry, d.name.Owner); ok {
		d.account, user = &a, a.username()
		if secret, err = d.helper.secret(a); err != nil {
			return d.bad(ctx, "sign-in", "you", "the secret of %s: %v", user, err)
		}
	}
	scope := "repository:" + d.name.String() + ":pull"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL(d.registry)+"/auth/token?"+url.Values{"scope": {scope}}.Encode(), nil)
	if err != nil {
		return err
	}
	if user != "" {
		req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+secret)))
	}
	res, err := d.helper.Client.Do(req)
	if err != nil {
		return d.bad(ctx, "sign-in", d.operator(), "no registry token: %v", unwrapURL(err))
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	var answer struct {
		Token  string
		Errors []struct{ Message string }
	}
	if err != nil || json.Unmarshal(raw, &answer) != nil {
		return d.bad(ctx, "sign-in", d.operator(), "/auth/token answers something that makes no sense (%s)", res.Status)
	}
	if res.StatusCode != http.StatusOK {
		said := res.Status
		if len(answer.Errors) > 0 {
			said = answer.Errors[0].Message
		}
		if res.StatusCode == http.StatusUnauthorized {
			return d.bad(ctx, "sign-in", "you: docker-credential-atcr login "+d.registry, "%s is refused: %s", user, said)
		}
		return d.bad(ctx, "sign-in", d.operator(), "no registry token: %s", said)
	}
	d.token = answer.Token
	if user == "" {
		return d.good("sign-in", "nobody is signed in, which public images do not need")
	}
	return d.good("sign-in", "signed in as %s", user)
}

func (d *doctor) checkName(ctx context.Context) error {
	text := strings.ToLower(d.name.Owner)
	for _, method := range []string{"plc", "web"} {
		if id, ok := strings.CutPrefix(text, "did_"+method+"_"); ok {
			text = "did:" + method + ":" + id
		}
	}
	id, err := syntax.ParseAtIdentifier(text)
	if err != nil {
		return d.bad(ctx, "name", "you", "%s is neither a handle nor a DID", d.name.Owner)
	}
	d.owner, err = d.resolver.Lookup(ctx, id)
	switch {
	case errors.Is(err, identity.ErrUnavailable):
		return d.bad(ctx, "name", "the network, or the directory of DIDs", "%s cannot be looked up right now: %v", text, err)
	case err != nil:
		return d.bad(ctx, "name", "the owner of "+text, "%s leads to no account: %v", text, err)
	case d.owner.PDS() == "":
		return d.bad(ctx, "name", "the owner of "+text, "%s names no PDS", d.owner.DID)
	}
	return d.good("name", "%s is %s, at the PDS %s", text, d.owner.DID, xrpc.HostOf(d.owner.PDS()))
}

func (d *doctor) checkRecord(ctx context.Context) error {
	digest := d.reference.Digest
	whose := "the owner of " + d.name.Owner
	if digest == "" {
		tag, err := recordOf[atcr.Tag](ctx, d, atcr.TagNSID, []string{atcr.TagRkey(d.name.Repository, d.reference.Tag), atcr.OldTagRkey(d.name.Repository, d.reference.Tag)}, func(t *atcr.Tag) bool {
			return t.Repository == d.name.Repository && t.Tag == d.reference.Tag
		})
		if err != nil {
			return d.bad(ctx, "tag record", d.pds(), "the PDS does not answer: %v", err)
		}
		if tag == nil {
			return d.bad(ctx, "tag record", whose, "%s has no tag %s: was it pushed?", d.name, d.reference.Tag)
		}
		if digest, err = oci.ParseDigest(tag.ManifestDigest); err != nil {
			rkey := tag.Manifest[strings.LastIndexByte(tag.Manifest, '/')+1:]
			hex, _, _ := strings.Cut(rkey, ":")
			if digest, err = oci.ParseDigest("sha256:" + hex); err != nil {
				return d.bad(ctx, "tag record", whose, "the tag names no manifest")
			}
		}
		if err := d.good("tag record", "%s is %s", d.reference.Tag, digest); err != nil {
			return err
		}
	}
	m, err := recordOf[atcr.Manifest](ctx, d, atcr.ManifestNSID, []string{atcr.ManifestRkey(digest.String()), atcr.ManifestRkeyIn(digest.String(), d.name.Repository)}, func(m *atcr.Manifest) bool {
		return m.Repository == d.name.Repository && m.Digest == digest.String()
	})
	if err != nil {
		return d.bad(ctx, "manifest record", d.pds(), "the PDS does not answer: %v", err)
	}
	if m == nil {
		return d.bad(ctx, "manifest record", whose, "%s has no manifest %s", d.name, digest)
	}
	d.record = *m
	return d.good("manifest record", "pushed %s, %s", m.CreatedAt, m.MediaType)
}

func (d *doctor) pds() string { return "the operator of the PDS " + xrpc.HostOf(d.owner.PDS()) }

// recordOf is the first record among rkeys that fits, nil for none.
func recordOf[T any](ctx context.Context, d *doctor, collection string, rkeys []string, fits func(*T) bool) (*T, error) {
	for _, rkey := range rkeys {
		var out struct{ Value json.RawMessage }
		err := d.upstream.JSON(ctx, xrpc.UpstreamCall{
			Base: d.owner.PDS(), NSID: "com.atproto.repo.getRecord",
			Query: url.Values{"repo": {d.owner.DID.String()}, "collection": {collection}, "rkey": {rkey}},
		}, &out)
		if e, ok := errors.AsType[*xrpc.UpstreamError](err); ok && (e.Status == http.StatusBadRequest || e.Status == http.StatusNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		value := new(T)
		if json.Unmarshal(out.Value, value) == nil && fits(value) {
			return value, nil
		}
	}
	return nil, nil
}

// checkManifest compares the bytes at the PDS with the digest, and sees that the registry serves them.
func (d *doctor) checkManifest(ctx context.Context) error {
	digest, err := oci.ParseDigest(d.record.Digest)
	if err != nil || d.record.ManifestBlob == nil {
		return d.bad(ctx, "manifest", "the owner of "+d.name.Owner, "the record names no manifest bytes: push it again")
	}
	d.raw, _, err = d.upstream.Bytes(ctx, xrpc.UpstreamCall{
		Base: d.owner.PDS(), NSID: "com.atproto.sync.getBlob", Limit: oci.MaxManifestBytes,
		Query: url.Values{"did": {d.owner.DID.String()}, "cid": {d.record.ManifestBlob.Ref.Link}},
	})
	if err != nil {
		return d.bad(ctx, "manifest", d.pds(), "the PDS does not have the manifest's bytes: %v", err)
	}
	if !digest.Matches(d.raw) {
		return d.bad(ctx, "manifest", d.pds(), "the PDS has other bytes than those of %s", digest)
	}
	res, err := d.ask(ctx, http.MethodHead, "/v2/"+d.name.String()+"/manifests/"+d.reference.String(), d.token)
	if err != nil {
		return d.bad(ctx, "manifest", d.operator(), "%v", unwrapURL(err))
	}
	if got := res.Header.Get("Docker-Content-Digest"); res.StatusCode != http.StatusOK || got != digest.String() {
		return d.bad(ctx, "manifest", d.operator(), "the PDS has it, but the registry answers %s %s", res.Status, got)
	}
	return d.good("manifest", "%d bytes at the PDS, and the registry serves the same", len(d.raw))
}

func (d *doctor) checkHold(ctx context.Context) error {
	did, err := syntax.ParseDID(d.record.HoldDid)
	if err != nil {
		return d.good("hold", "the record names none by its DID (%s)", d.record.HoldEndpoint)
	}
	whose := "the operator of the hold " + did.String()
	found, err := d.resolver.LookupDID(ctx, did)
	if err != nil {
		return d.bad(ctx, "hold", whose, "%s cannot be resolved: %v", did, err)
	}
	var out struct{ Value atcr.HoldCaptain }
	err = d.upstream.JSON(ctx, xrpc.UpstreamCall{
		Base: found.Hold(), NSID: "com.atproto.repo.getRecord",
		Query: url.Values{"repo": {did.String()}, "collection": {atcr.HoldCaptainNSID}, "rkey": {atcr.SelfRkey}},
	}, &out)
	if err != nil {
		return d.bad(ctx, "hold", whose, "%s does not answer: %v", xrpc.HostOf(found.Hold()), err)
	}
	readers := "its members alone read"
	if out.Value.Public {
		readers = "everybody reads"
	}
	return d.good("hold", "%s at %s: %s", did, xrpc.HostOf(found.Hold()), readers)
}

// checkBytes asks the registry, as a client would, for every blob that the manifest names.
func (d *doctor) checkBytes(ctx context.Context) error {
	m, err := oci.ParseManifest(d.record.MediaType, d.raw)
	if err != nil {
		return d.bad(ctx, "bytes", "whoever pushed it", "the manifest is not valid: %v", err)
	}
	total, start := int64(0), time.Now()
	for i, child := range m.Manifests {
		if i == maxChildren {
			break
		}
		if err := d.head(ctx, "manifests", child.Digest, -1); err != nil {
			return err
		}
	}
	blobs := m.Blobs()
	for _, blob := range blobs {
		if len(blob.URLs) > 0 { // somewhere else on purpose
			continue
		}
		if err := d.head(ctx, "blobs", blob.Digest, blob.Size); err != nil {
			return err
		}
		total += blob.Size
	}
	if len(m.Manifests) > 0 {
		return d.good("bytes", "%d manifests of this index are there; ask for one of them by its digest to see its layers", min(len(m.Manifests), maxChildren))
	}
	return d.good("bytes", "%d blobs, %d bytes: all there (%s)", len(blobs), total, time.Since(start).Round(time.Millisecond))
}

func (d *doctor) head(ctx context.Context, kind string, digest oci.Digest, size int64) error {
	res, err := d.ask(ctx, http.MethodHead, "/v2/"+d.name.String()+"/"+kind+"/"+digest.String(), d.token)
	if err != nil {
		return d.bad(ctx, "bytes", d.operator(), "%s: %v", digest, unwrapURL(err))
	}
	hold := "the operator of the hold " + d.record.HoldDid
	switch {
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		who := "nobody"
		if d.account != nil {
			who = d.account.username()
		}
		return d.bad(ctx, "bytes", "you, or the owner of the hold "+d.record.HoldDid+", who makes members", "%s may not read at the hold", who)
	case res.StatusCode == http.StatusNotFound:
		return d.bad(ctx, "bytes", hold, "the hold does not have %s", digest)
	case res.StatusCode != http.StatusOK:
		return d.bad(ctx, "bytes", hold+", or of "+d.registry, "%s is answered with %s", digest, res.Status)
	case size >= 0 && res.ContentLength != size:
		return d.bad(ctx, "bytes", hold, "%s has %d bytes, and should have %d", digest, res.ContentLength, size)
	}
	return nil
}

// answered is a response without its body.
type answered struct {
	StatusCode    int
	Status        string
	Header        http.Header
	ContentLength int64
}

// ask is a request to the registry.
func (d *doctor) ask(ctx context.Context, method, path, token string) (answered, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, baseURL(d.registry)+path, nil)
	if err != nil {
		return answered{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Accept", strings.Join([]string{oci.MediaTypeImageManifest, oci.MediaTypeImageIndex, oci.MediaTypeDockerManifest, oci.MediaTypeDockerManifestList, "*/*"}, ", "))
	res, err := d.helper.Client.Do(req)
	if err != nil {
		return answered{}, err
	}
	return answered{res.StatusCode, res.Status, res.Header, res.ContentLength}, res.Body.Close()
}
