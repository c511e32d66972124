package appview

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
	lru "github.com/hashicorp/golang-lru/v2"

	"atcr.io/internal/httpx"
	"atcr.io/internal/oci"
	"atcr.io/internal/registry"
)

// blobs is registry.Blobs on holds.
type blobs struct {
	owners owners
	holds  *holds
	calls  *holdCalls
	places *places
	gone   *deletedBlobs
	// kept are places at public holds, for a moment: a pull asks for many blobs, and many pull one image.
	kept   *lru.Cache[placeKey, keptPlace]
	clock  clock
	recent *recentBlobs
	// through gets bytes that clients are not sent to: without a total timeout, with redirects.
	through *http.Client
}

// Stat answers a caller who may push for the hold that the push goes to, so that what is there already is
// not uploaded again; others for the hold where the repository's blob is.
func (b *blobs) Stat(ctx context.Context, c registry.Caller, name oci.Name, d oci.Digest) (int64, error) {
	of, err := b.owners.find(ctx, name.Owner)
	if err != nil {
		return 0, err
	}
	if gone, err := b.gone.has(ctx, blobKey{of.DID, name.Repository, d}); err != nil || gone {
		return 0, goneBlob(name, d, err)
	}
	if c.Push && c.Subject == of.DID.String() {
		size, _, err := b.statForPush(ctx, c, of, name, d)
		if e, ok := errors.AsType[*oci.Error](err); ok && e.HTTPStatus() == http.StatusForbidden {
			// A HEAD has no body to say it in: the POST that follows says what to do.
			return 0, &oci.Error{Code: oci.CodeBlobUnknown, Message: e.Message, Err: err}
		}
		return size, err
	}
	at, err := b.placed(ctx, of, name, d)
	if isBlobUnknown(err) {
		if at, err = b.sentDirectly(ctx, c, of, name, d, err); err != nil {
			return 0, err
		}
	}
	if err != nil {
		return 0, err
	}
	size, _, err := b.statFollowing(ctx, c, of, at, d)
	return size, err
}

// sentDirectly looks for a blob that no manifest names yet, and that its owner may just have sent to a hold itself.
// Who shows no token is asked for one, if that happened: clients that wait to be asked would else not find what they
// have pushed. unknown is what it was before.
func (b *blobs) sentDirectly(ctx context.Context, c registry.Caller, of owner, name oci.Name, d oci.Digest, unknown error) (*hold, error) {
	sent, err := b.recent.find(ctx, blobKey{of.DID, name.Repository, anyDigest})
	switch {
	case err != nil:
		return nil, err
	case sent == "":
		return nil, unknown
	case !c.Token:
		return nil, unauthorized(unknown, "no such blob is here for everybody: log in, if it is yours")
	case c.Subject != of.DID.String():
		return nil, unknown
	}
	at, err := b.holds.find(ctx, sent)
	if err == nil {
		_, err = b.calls.stat(ctx, c, at, of.DID, d)
	}
	if err != nil {
		return nil, err
	}
	return at, b.recent.came(ctx, of.DID, name.Repository, at.DID, d)
}

// statForPush asks the hold that c pushes to, and remembers a yes.
func (b *blobs) statForPush(ctx context.Context, c registry.Caller, of owner, name oci.Name, d oci.Digest) (int64, *hold, error) {
	at, err := b.holds.forPush(ctx, of.DID)
	if err != nil {
		return 0, nil, err
	}
	httpx.EventFrom(ctx).Hold = at.DID.String()
	size, err := b.calls.stat(ctx, c, at, of.DID, d)
	if err != nil {
		return 0, nil, err
	}
	b.places.add(of.DID, name.Repository, d, at.DID)
	b.places.seen(at.DID, c.Subject, d, size)
	return size, at, nil
}

// recall lets places know where a blob came to a while ago, whichever process took it.
func (b *blobs) recall(ctx context.Context, of owner, repository string, d oci.Digest) error {
	if b.places.knows(of.DID, repository, d) {
		return nil
	}
	at, err := b.recent.find(ctx, blobKey{of.DID, repository, d})
	b.places.add(of.DID, repository, d, at)
	return err
}

// placed is the hold that has a blob of a repository. Errors: *oci.Error, CodeBlobUnknown for none.
func (b *blobs) placed(ctx context.Context, of owner, name oci.Name, d oci.Digest) (*hold, error) {
	if err := b.recall(ctx, of, name.Repository, d); err != nil {
		return nil, err
	}
	did, err := b.places.find(ctx, of, name.Repository, d)
	if err != nil {
		return nil, err
	}
	if did == "" {
		return nil, unknownBlob(name, d)
	}
	httpx.EventFrom(ctx).Hold = did.String()
	return b.holds.find(ctx, did)
}

// statFollowing asks a hold, and where it does not have the blob, the one that replaces it.
func (b *blobs) statFollowing(ctx context.Context, c registry.Caller, of owner, at *hold, d oci.Digest) (int64, *hold, error) {
	for step := 0; ; step++ {
		size, err := b.calls.stat(ctx, c, at, of.DID, d)
		if !isBlobUnknown(err) || at.Successor == "" || step == successorSteps {
			return size, at, err
		}
		next, nextErr := b.holds.find(ctx, at.Successor)
		if nextErr != nil {
			return 0, at, err
		}
		at = next
	}
}

// goneBlob is err, or that the blob was deleted.
func goneBlob(name oci.Name, d oci.Digest, err error) error {
	if err != nil {
		return err
	}
	return unknownBlob(name, d)
}

func unknownBlob(name oci.Name, d oci.Digest) error {
	return oci.Errorf(oci.CodeBlobUnknown, "%s has no blob %s", name, d)
}

// DeleteBlob takes a blob out of a repository, at once. Its bytes are the hold's, which collects them when no image
// names them: in other repositories the blob stays.
func (b *blobs) DeleteBlob(ctx context.Context, c registry.Caller, name oci.Name, d oci.Digest) error {
	of, err := b.owners.own(ctx, c, name)
	if err != nil {
		return err
	}
	c.Push = true // who may delete here may see what they uploaded
	if _, err := b.Stat(ctx, c, name, d); err != nil {
		return err
	}
	return b.gone.add(ctx, blobKey{of.DID, name.Repository, d})
}

func isBlobUnknown(err error) bool {
	e, ok := errors.AsType[*oci.Error](err)
	return ok && e.Code == oci.CodeBlobUnknown
}

// Locate is the blob's address at a public hold, which costs no call, or what a hold signs for the caller. Where clients
// would take their tokens there, the bytes go through this registry.
func (b *blobs) Locate(ctx context.Context, c registry.Caller, name oci.Name, d oci.Digest) (registry.Place, error) {
	key := placeKey{name.Owner, name.Repository, d}
	if known, ok := b.kept.Get(key); ok && b.clock().Before(known.until) {
		if gone, err := b.gone.has(ctx, blobKey{known.owner, name.Repository, d}); err != nil || gone {
			return registry.Place{}, goneBlob(name, d, err)
		}
		return registry.Place{URL: known.url}, nil
	}
	of, at, err := b.located(ctx, c, name, d)
	if err != nil {
		return registry.Place{}, err
	}
	if at.Public && !at.Own {
		target := blobURL(at, of.DID, d)
		if at.Successor == "" {
			b.kept.Add(key, keptPlace{owner: of.DID, url: target, until: b.clock().Add(placeFresh)})
		}
		return registry.Place{URL: target}, nil
	}
	target, err := b.calls.locate(ctx, c, at, of.DID, d)
	if err != nil {
		return registry.Place{}, err
	}
	return registry.Place{URL: target, Through: b.calls.targets.takesCredentials(target)}, nil
}

const (
	// placeFresh is how long a place is believed without a look at what is known of name, repository and hold.
	placeFresh  = 2 * time.Second
	placesAhead = 20_000
)

type placeKey struct {
	owner, repository string // as the name has them
	digest            oci.Digest
}

type keptPlace struct {
	owner syntax.DID
	url   string
	until time.Time
}

// located is the hold that has a blob for c.
func (b *blobs) located(ctx context.Context, c registry.Caller, name oci.Name, d oci.Digest) (owner, *hold, error) {
	of, err := b.owners.find(ctx, name.Owner)
	if err != nil {
		return of, nil, err
	}
	if gone, err := b.gone.has(ctx, blobKey{of.DID, name.Repository, d}); err != nil || gone {
		return of, nil, goneBlob(name, d, err)
	}
	at, err := b.placed(ctx, of, name, d)
	if isBlobUnknown(err) && c.Push && c.Subject == of.DID.String() {
		_, at, err = b.statForPush(ctx, c, of, name, d) // just uploaded, and no manifest names it yet
	} else if isBlobUnknown(err) {
		at, err = b.sentDirectly(ctx, c, of, name, d, err)
	}
	if err == nil && at.Successor != "" {
		_, at, err = b.statFollowing(ctx, c, of, at, d)
	}
	return of, at, err
}

func blobURL(at *hold, of syntax.DID, d oci.Digest) string {
	// Neither a DID nor a digest has a character that a query must escape, but for "%" of did:web.
	return at.URL + "/xrpc/" + getBlobNSID + "?did=" + url.QueryEscape(of.String()) + "&cid=" + d.String()
}
