package appview

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

const getBlobNSID = "com.atproto.sync.getBlob"

// serviceTokens are tokens by which a person calls a hold: session.Store.
type serviceTokens interface {
	ServiceToken(ctx context.Context, session string, hold syntax.DID, lxm string) (string, error)
	OnceToken(ctx context.Context, session string, hold syntax.DID, lxm string) (string, error)
	Forget(session string, hold syntax.DID, lxm, token string) bool
	RefuseFragment(hold syntax.DID) (changed bool, undo func())
}

// holdCalls calls holds in a person's name.
type holdCalls struct {
	upstream xrpc.Upstream
	tokens   serviceTokens
	targets  *targets
	again    func(ctx context.Context, did syntax.DID) (*hold, error) // holds.again
}

// as calls do with the caller's service token for lxm. A hold that refuses it gets a new one, where that one was some time
// old, and then one more with the bare DID as its audience.
func (h *holdCalls) as(ctx context.Context, c registry.Caller, to *hold, lxm string, do func(token string) error) error {
	return h.with(ctx, c, to, lxm, h.tokens.ServiceToken, do)
}

// with is as with tokens that get finds.
func (h *holdCalls) with(ctx context.Context, c registry.Caller, to *hold, lxm string, get func(context.Context, string, syntax.DID, string) (string, error), do func(token string) error) error {
	token, err := get(ctx, c.Session, to.DID, lxm)
	if err != nil {
		return upstreamError("your PDS", err)
	}
	err = do(token)
	if unauthenticated(err) && h.tokens.Forget(c.Session, to.DID, lxm, token) {
		if token, err = get(ctx, c.Session, to.DID, lxm); err != nil {
			return upstreamError("your PDS", err)
		}
		err = do(token)
	}
	if !unauthenticated(err) {
		return err
	}
	changed, undo := h.tokens.RefuseFragment(to.DID)
	if !changed {
		return err
	}
	if token, err = get(ctx, c.Session, to.DID, lxm); err != nil {
		undo()
		return upstreamError("your PDS", err)
	}
	if err = do(token); err != nil {
		undo()
	}
	return err
}

// unauthenticated tells whether a hold does not take the token.
func unauthenticated(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	return ok && e.Status == http.StatusUnauthorized
}

// reading is as for reads: a public hold is asked as nobody, a private one by somebody alone. A public one that
// refuses may have become private a moment ago.
func (h *holdCalls) reading(ctx context.Context, c registry.Caller, at *hold, do func(token string) error) error {
	if at.Public {
		err := do("")
		if !refuses(err) {
			return err
		}
		now, findErr := h.again(ctx, at.DID)
		if findErr != nil || now.Public {
			return err
		}
	}
	if c.Session == "" {
		return privateHold(at)
	}
	return h.as(ctx, c, at, getBlobNSID, do)
}

// refuses tells whether a hold says that the caller may not.
func refuses(err error) bool {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	return ok && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden)
}

func privateHold(at *hold) error {
	return oci.Errorf(oci.CodeUnauthorized, "the hold %s is private: log in, with an account that its owner lets read there", at.DID)
}

const (
	// joiningPatience is how long a push waits for a hold's storage to make an object of a blob.
	joiningPatience = 2 * time.Minute
	// joiningPause is between two looks, in each of which a hold has waited itself.
	joiningPause = time.Second
)

// statJoined is stat that waits where the hold says that its storage is at it.
func (h *holdCalls) statJoined(ctx context.Context, c registry.Caller, at *hold, of syntax.DID, d oci.Digest) (int64, error) {
	for start := time.Now(); ; {
		size, err := h.stat(ctx, c, at, of, d)
		e, ok := errors.AsType[*xrpc.UpstreamError](err)
		if !ok || e.Status != http.StatusServiceUnavailable || e.Header.Get(atcr.JoiningHeader) == "" || time.Since(start) > joiningPatience {
			return size, err
		}
		select {
		case <-time.After(joiningPause):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// stat is a blob's size at a hold. Errors: *oci.Error, CodeBlobUnknown where it is not there.
func (h *holdCalls) stat(ctx context.Context, c registry.Caller, at *hold, of syntax.DID, d oci.Digest) (size int64, err error) {
	err = h.reading(ctx, c, at, func(token string) error {
		size, err = h.head(ctx, at, token, of, d)
		return err
	})
	return size, holdReadError(c, at, d, err)
}

func (h *holdCalls) head(ctx context.Context, at *hold, token string, of syntax.DID, d oci.Digest) (int64, error) {
	res, err := h.upstream.Do(ctx, xrpc.UpstreamCall{
		Base: at.URL, NSID: getBlobNSID, Method: http.MethodHead, Token: token,
		Query: url.Values{"did": {of.String()}, "cid": {d.String()}},
	})
	if err == nil {
		_ = res.Body.Close()
		if res.ContentLength < 0 {
			return 0, invalidAnswer(at, getBlobNSID, errors.New("HEAD without Content-Length"))
		}
		return res.ContentLength, nil
	}
	if e, ok := errors.AsType[*xrpc.UpstreamError](err); !ok || e.Status/100 != 3 {
		return 0, err
	}
	// A hold that redirects HEAD: its storage is asked, where a URL is presigned for it.
	target, err := h.signedURL(ctx, at, token, of, d, http.MethodHead)
	if err != nil {
		return 0, err
	}
	return h.headURL(ctx, at, target)
}

func (h *holdCalls) headURL(ctx context.Context, at *hold, target string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, target, nil)
	if err != nil {
		return 0, invalidAnswer(at, getBlobNSID, err)
	}
	res, err := h.upstream.Client.Do(req)
	if err != nil {
		return 0, invalidAnswer(at, getBlobNSID, errors.New("its storage cannot be reached"))
	}
	_ = res.Body.Close()
	switch {
	case res.StatusCode == http.StatusOK && res.ContentLength >= 0:
		return res.ContentLength, nil
	case res.StatusCode == http.StatusNotFound:
		return 0, &xrpc.UpstreamError{Host: xrpc.HostOf(at.URL), NSID: getBlobNSID, Status: http.StatusNotFound}
	}
	return 0, invalidAnswer(at, getBlobNSID, errors.New("its storage answered HEAD with "+strconv.Itoa(res.StatusCode)))
}

// locate is a URL from which anybody gets the blob for a while, checked. Errors: *oci.Error.
func (h *holdCalls) locate(ctx context.Context, c registry.Caller, at *hold, of syntax.DID, d oci.Digest) (target string, err error) {
	err = h.reading(ctx, c, at, func(token string) error {
		target, err = h.signedURL(ctx, at, token, of, d, http.MethodGet)
		return err
	})
	return target, holdReadError(c, at, d, err)
}

func (h *holdCalls) signedURL(ctx context.Context, at *hold, token string, of syntax.DID, d oci.Digest, method string) (string, error) {
	var out struct{ URL string }
	err := h.upstream.JSON(ctx, xrpc.UpstreamCall{
		Base: at.URL, NSID: getBlobNSID, Token: token, Limit: 64 << 10,
		Query: url.Values{"did": {of.String()}, "cid": {d.String()}, "method": {method}},
	}, &out)
	if err != nil {
		return "", err
	}
	if err := h.targets.check(ctx, at, out.URL); err != nil {
		return "", invalidAnswer(at, getBlobNSID, err)
	}
	return out.URL, nil
}

// begin asks a hold for an upload. uploadURL is "" where the hold knows parts alone. A hold that takes everybody as a
// member, and members alone, is asked for membership. Errors: *oci.Error.
func (h *holdCalls) begin(ctx context.Context, c registry.Caller, at *hold, in atcr.HoldInitiateUploadInput) (out atcr.HoldInitiateUploadOutput, err error) {
	out, err = h.initiate(ctx, c, at, in)
	if refuses(err) {
		now, findErr := h.again(ctx, at.DID)
		if findErr == nil && now.AllowAllCrew && h.join(ctx, c, now) == nil {
			out, err = h.initiate(ctx, c, now, in)
		}
	}
	return out, holdWriteError(c, at, err)
}

// join asks for membership, in a call whose token is good for once.
func (h *holdCalls) join(ctx context.Context, c registry.Caller, at *hold) error {
	return h.with(ctx, c, at, atcr.HoldRequestCrewNSID, h.tokens.OnceToken, func(token string) error {
		call, err := xrpc.JSONCall(at.URL, atcr.HoldRequestCrewNSID, token, atcr.HoldRequestCrewInput{})
		if err != nil {
			return err
		}
		return h.upstream.JSON(ctx, call, nil)
	})
}

func (h *holdCalls) initiate(ctx context.Context, c registry.Caller, at *hold, in atcr.HoldInitiateUploadInput) (out atcr.HoldInitiateUploadOutput, err error) {
	err = h.as(ctx, c, at, atcr.HoldInitiateUploadNSID, func(token string) error {
		call, err := xrpc.JSONCall(at.URL, atcr.HoldInitiateUploadNSID, token, in)
		if err != nil {
			return err
		}
		return h.upstream.JSON(ctx, call, &out)
	})
	if err != nil || out.UploadUrl == "" {
		return out, err
	}
	if err := h.targets.check(ctx, at, out.UploadUrl); err != nil {
		return out, invalidAnswer(at, atcr.HoldInitiateUploadNSID, err)
	}
	return out, nil
}

// part sends one part of an upload, and has nothing of raw when it returns. Errors: *oci.Error.
func (h *holdCalls) part(ctx context.Context, c registry.Caller, at *hold, id string, number int, raw []byte) (etag string, err error) {
	var out atcr.HoldUploadPartOutput
	err = h.as(ctx, c, at, atcr.HoldInitiateUploadNSID, func(token string) error {
		body := &lentBytes{r: bytes.NewReader(raw)}
		defer body.takeBack()
		return h.upstream.JSON(ctx, xrpc.UpstreamCall{
			Base: at.URL, NSID: atcr.HoldUploadPartNSID, Method: http.MethodPut, Token: token,
			Body: body, Size: int64(len(raw)), ContentType: "application/octet-stream",
			Header: http.Header{"X-Upload-Id": {id}, "X-Part-Number": {strconv.Itoa(number)}},
		}, &out)
	})
	return out.Etag, holdWriteError(c, at, err)
}

// lentBytes is a request's body whose bytes are somebody's to use again. A hold may answer before it has read them, and
// the HTTP client then goes on reading after the call has returned.
type lentBytes struct {
	mu   sync.Mutex
	r    *bytes.Reader
	over bool
}

func (l *lentBytes) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return 0, io.ErrClosedPipe
	}
	return l.r.Read(p)
}

func (l *lentBytes) takeBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

// call is one of the upload methods with a JSON body and answer. Errors: *oci.Error.
func (h *holdCalls) call(ctx context.Context, c registry.Caller, at *hold, nsid string, in, out any) error {
	err := h.as(ctx, c, at, atcr.HoldInitiateUploadNSID, func(token string) error {
		call, err := xrpc.JSONCall(at.URL, nsid, token, in)
		if err != nil {
			return err
		}
		return h.upstream.JSON(ctx, call, out)
	})
	return holdWriteError(c, at, err)
}

func invalidAnswer(at *hold, nsid string, err error) error {
	return &xrpc.UpstreamError{Host: xrpc.HostOf(at.URL), NSID: nsid, Status: http.StatusOK, Invalid: true, Err: err}
}

// heldAgainst is a hold's failure, and false for one that is another's: a PDS that signed no token was named already.
func heldAgainst(err error) (*xrpc.UpstreamError, bool) {
	if _, named := errors.AsType[*oci.Error](err); named {
		return nil, false
	}
	return errors.AsType[*xrpc.UpstreamError](err)
}

// holdReadError says why a blob cannot be read.
func holdReadError(c registry.Caller, at *hold, d oci.Digest, err error) error {
	e, ok := heldAgainst(err)
	if !ok {
		return err
	}
	var out *oci.Error
	switch {
	case e.Status == http.StatusNotFound || e.Status == http.StatusBadRequest:
		out = oci.Errorf(oci.CodeBlobUnknown, "the hold %s has no blob %s", at.DID, d)
	case (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden) && c.Subject == "":
		return privateHold(at)
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden:
		out = oci.Errorf(oci.CodeDenied, "the hold %s does not let %s read: ask its owner for crew membership%s", at.DID, c.Subject, said(e))
	default:
		return upstreamError("the hold "+at.DID.String(), err)
	}
	out.Err = err
	return out
}

// holdWriteError says why a hold takes no upload, and what to do.
func holdWriteError(c registry.Caller, at *hold, err error) error {
	e, ok := heldAgainst(err)
	if !ok {
		return err
	}
	var out *oci.Error
	switch {
	case e.Name == atcr.HoldInitiateUploadErrorQuotaExceeded:
		out = oci.Errorf(oci.CodeDenied, "the quota of %s at the hold %s is used up: delete images, ask its owner for more, or choose another hold%s", c.Subject, at.DID, said(e))
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden:
		out = oci.Errorf(oci.CodeDenied, "this hold does not accept pushes from %s: ask its owner for crew membership, or choose another hold (the hold is %s%s)", c.Subject, at.DID, said(e))
	case e.Name == "InvalidDigest":
		out = oci.Errorf(oci.CodeDigestInvalid, "the hold %s found another digest%s", at.DID, said(e))
	case e.Name == "InvalidUploadId":
		out = oci.Errorf(oci.CodeBlobUploadUnknown, "the hold %s does not know this upload (any more): begin a new one", at.DID)
	case e.Status == http.StatusInsufficientStorage:
		out = oci.Unavailable(http.StatusInsufficientStorage, nil, "the storage of the hold %s is full: tell its owner", at.DID)
	default:
		return upstreamError("the hold "+at.DID.String(), err)
	}
	out.Err = err
	return out
}

// said are the hold's own words, for people.
func said(e *xrpc.UpstreamError) string {
	if e.Message == "" {
		return ""
	}
	return "; it says: " + e.Message
}

var _ serviceTokens = (*session.Store)(nil)
