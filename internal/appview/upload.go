package appview

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

// placeholders stand for a digest that is not known yet; the hold believes their algorithm alone.
var placeholders = map[string]string{
	oci.SHA256: oci.SHA256 + ":" + strings.Repeat("0", 64),
	oci.SHA512: oci.SHA512 + ":" + strings.Repeat("0", 128),
}

// uploads is registry.Uploads on holds. It keeps no state of uploads that a hold takes at an uploadUrl; see
// ticket.
type uploads struct {
	owners  owners
	holds   *holds
	calls   *holdCalls
	blobs   *blobs
	places  *places
	sealer  *sealer
	relay   *relay
	parts   *parts
	baseURL string
	direct  string
	clock   clock
}

// Begin asks the person's hold for an upload. A client that is known to drop its credentials on the way is
// sent to the hold; others go on here.
func (u *uploads) Begin(ctx context.Context, c registry.Caller, name oci.Name, o registry.BeginOptions) (registry.Upload, error) {
	of, err := u.owners.own(ctx, c, name)
	if err != nil {
		return registry.Upload{}, err
	}
	at, err := u.holds.forPush(ctx, of.DID)
	if err != nil {
		return registry.Upload{}, err
	}
	httpx.EventFrom(ctx).Hold = at.DID.String()
	in := atcr.HoldInitiateUploadInput{Digest: o.Digest.String(), Location: u.baseURL + "/v2/" + name.String() + "/blobs/"}
	if in.Digest == "" {
		if in.Digest = placeholders[o.Algorithm]; in.Digest == "" {
			in.Digest = placeholders[oci.SHA256]
		}
	}
	out, err := u.calls.begin(ctx, c, at, in)
	if err != nil {
		return registry.Upload{}, err
	}
	repository := repositoryKey{of.DID, name.Repository}
	direct := u.goesDirect(o.UserAgent, out.UploadUrl)
	if direct && out.UploadUrl != "" { // what was deleted is there again once it is seen to arrive
		deleted, err := u.blobs.gone.anyIn(ctx, repository)
		if err != nil {
			return registry.Upload{}, err
		}
		direct = !deleted
	}
	t := ticket{Hold: at.DID, Subject: c.Subject, Repository: name.Repository, Expires: u.clock().Add(uploadLifetime).Unix()}
	switch {
	case out.UploadUrl == "":
		if err := u.parts.begin(ctx, c.Subject, at.DID, out.UploadId); err != nil {
			return registry.Upload{}, err
		}
		t.UploadID = out.UploadId
	case direct:
		return registry.Upload{Location: out.UploadUrl, Range: emptyRange}, u.blobs.recent.came(ctx, of.DID, name.Repository, at.DID, anyDigest)
	default:
		t.URL = out.UploadUrl
	}
	return u.progress(name, t, emptyRange)
}

// emptyRange says that nothing has arrived: the form has no other word for it.
const emptyRange = "0-0"

// staysHere are clients that take the registry's token along to the hold (those that containers/image is in), or take no
// Location on another host (those that oras-go is in).
var staysHere = []string{"containers/", "podman/", "buildah/", "skopeo/", "cri-o/", "oras/", "oras-go/", "helm/"}

// goesDirect tells whether a client may get the hold's own URL. An https registry never hands out http, nor a place on
// its own host name, where clients take their tokens along.
func (u *uploads) goesDirect(userAgent, target string) bool {
	if strings.HasPrefix(u.baseURL, "https:") && !strings.HasPrefix(target, "https:") || u.calls.targets.takesCredentials(target) {
		return false
	}
	switch u.direct {
	case directAlways:
		return userAgent != "" && !slices.ContainsFunc(staysHere, func(name string) bool { return strings.HasPrefix(strings.ToLower(userAgent), name) })
	case directAuto:
		return strings.HasPrefix(userAgent, "containerd/")
	}
	return false
}

func (u *uploads) progress(name oci.Name, t ticket, arrived string) (registry.Upload, error) {
	id, err := u.sealer.seal(t)
	if err != nil {
		return registry.Upload{}, err
	}
	return registry.Upload{Location: "/v2/" + name.String() + "/blobs/uploads/" + id, Range: arrived}, nil
}

// open reads the ticket of a Location.
func (u *uploads) open(ctx context.Context, c registry.Caller, name oci.Name, id string) (ticket, error) {
	t, err := u.sealer.open(id, c.Subject, name.Repository)
	if err != nil {
		e := oci.Errorf(oci.CodeBlobUploadUnknown, "there is no such upload: it was finished or cancelled, or is too old. Begin a new one")
		e.Err = err
		return t, e
	}
	httpx.EventFrom(ctx).Hold = t.Hold.String()
	return t, nil
}

// Append sends a chunk on.
func (u *uploads) Append(ctx context.Context, c registry.Caller, name oci.Name, id string, chunk registry.Chunk) (registry.Upload, error) {
	t, err := u.open(ctx, c, name, id)
	if err != nil {
		return registry.Upload{}, err
	}
	var arrived string
	if t.URL == "" {
		arrived, err = u.parts.append(ctx, c, t, chunk)
	} else {
		arrived, err = u.relay.patch(ctx, &t, chunk)
	}
	return u.answer(name, t, arrived, err)
}

// Status asks how far an upload is.
func (u *uploads) Status(ctx context.Context, c registry.Caller, name oci.Name, id string) (registry.Upload, error) {
	t, err := u.open(ctx, c, name, id)
	if err != nil {
		return registry.Upload{}, err
	}
	var arrived string
	if t.URL == "" {
		arrived, err = u.parts.status(ctx, t)
	} else {
		arrived, err = u.relay.get(ctx, &t)
	}
	return u.answer(name, t, arrived, err)
}

// answer is where the upload stands, also where a chunk was refused because it stands elsewhere.
func (u *uploads) answer(name oci.Name, t ticket, arrived string, err error) (registry.Upload, error) {
	wrong, isRange := errors.AsType[*rangeError](err)
	if err != nil && !isRange {
		return registry.Upload{}, err
	}
	if isRange {
		arrived = wrong.arrived
	}
	out, sealErr := u.progress(name, t, arrived)
	if sealErr != nil {
		return registry.Upload{}, sealErr
	}
	if isRange {
		return registry.Upload{}, &registry.RangeError{Upload: out, Err: wrong.err}
	}
	return out, nil
}

// rangeError says where an upload stands that a chunk did not begin at.
type rangeError struct {
	arrived string
	err     *oci.Error
}

func (e *rangeError) Error() string { return e.err.Error() }

func (e *rangeError) Unwrap() error { return e.err }

func outOfOrder(arrived string) error {
	return &rangeError{arrived: arrived, err: &oci.Error{
		Code: oci.CodeBlobUploadInvalid, Status: http.StatusRequestedRangeNotSatisfiable,
		Message: "the chunk does not begin where the upload stands",
	}}
}

// Finish sends the last bytes on and has the hold compare the digest.
func (u *uploads) Finish(ctx context.Context, c registry.Caller, name oci.Name, id string, d oci.Digest, chunk registry.Chunk) error {
	t, err := u.open(ctx, c, name, id)
	if err != nil {
		return err
	}
	joining := false
	if t.URL == "" {
		err = u.parts.finish(ctx, c, t, d, chunk)
	} else {
		joining, err = u.relay.put(ctx, &t, d, chunk)
	}
	if wrong, ok := errors.AsType[*rangeError](err); ok {
		out, sealErr := u.progress(name, t, wrong.arrived)
		if sealErr != nil {
			return sealErr
		}
		return &registry.RangeError{Upload: out, Err: wrong.err}
	}
	if err != nil {
		return err
	}
	u.places.add(syntax.DID(c.Subject), name.Repository, d, t.Hold)
	if !joining { // else a manifest that names it has the hold asked
		u.places.seen(t.Hold, c.Subject, d, unknownSize)
	}
	u.places.sent(t.Hold, c.Subject, d)
	return u.came(ctx, syntax.DID(c.Subject), name.Repository, t.Hold, d)
}

// Cancel throws an upload away.
func (u *uploads) Cancel(ctx context.Context, c registry.Caller, name oci.Name, id string) error {
	t, err := u.open(ctx, c, name, id)
	if err != nil {
		return err
	}
	if t.URL == "" {
		return u.parts.cancel(ctx, c, t)
	}
	return u.relay.delete(ctx, &t)
}

// Mount is done where the blob is in the hold that the push goes to, and the caller may read it there: then
// no byte moves. Everything else is an upload.
func (u *uploads) Mount(ctx context.Context, c registry.Caller, name, from oci.Name, d oci.Digest) (bool, error) {
	of, err := u.owners.own(ctx, c, name)
	if err != nil {
		return false, err
	}
	if from.Owner != "" {
		source, err := u.owners.find(ctx, from.Owner)
		if err != nil {
			return false, nil //nolint:nilerr // no source, no mount
		}
		if err := u.blobs.recall(ctx, source, from.Repository, d); err != nil {
			return false, nil //nolint:nilerr // no source, no mount
		}
		at, err := u.places.find(ctx, source, from.Repository, d)
		if err != nil || at == "" {
			return false, nil //nolint:nilerr // no source, no mount
		}
		if gone, err := u.blobs.gone.has(ctx, blobKey{source.DID, from.Repository, d}); err != nil || gone {
			return false, err
		}
	}
	_, at, err := u.blobs.statForPush(ctx, c, of, name, d)
	if err != nil {
		return false, nil //nolint:nilerr // the upload that follows says what is wrong
	}
	return true, u.came(ctx, of.DID, name.Repository, at.DID, d)
}

// came notes that a repository has a blob, also if it was deleted there before.
func (u *uploads) came(ctx context.Context, did syntax.DID, repository string, at syntax.DID, d oci.Digest) error {
	if err := u.blobs.gone.restore(ctx, blobKey{did, repository, d}); err != nil {
		return err
	}
	return u.blobs.recent.came(ctx, did, repository, at, d)
}
