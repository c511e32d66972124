package appview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/outbox"
	"atcr.io/internal/registry"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

// queue keeps messages until they are delivered: outbox.Outbox.
type queue interface {
	Add(ctx context.Context, m outbox.Message) (id int64, err error)
	Release(ctx context.Context, id int64) error
	ReleaseAndWait(ctx context.Context, id int64) error
	Drop(ctx context.Context, id int64) error
}

// patience is how long a push waits for what the hold says of it, where that may be a refusal.
const patience = 3 * time.Second

// notifier tells holds what happened to the images whose blobs they have, in the person's name.
//
// Source: contract, "notifyManifest" and "requestCrew".
type notifier struct {
	queue  queue
	holds  *holds
	calls  *holdCalls
	logger *slog.Logger
	joined *cache[membership, bool]
}

// membership is a person and a hold that they asked to be a member of.
type membership struct{ person, hold syntax.DID }

// toldPlatforms bounds the children whose platforms a hold is told, for its post about the image.
const toldPlatforms = 1000

// joinAgain is how long a person is believed to be a member whom a hold made one.
const joinAgain = 24 * time.Hour

func newNotifier(holds *holds, calls *holdCalls, logger *slog.Logger, now clock) *notifier {
	n := &notifier{holds: holds, calls: calls, logger: logger}
	n.joined = newCache(10_000, joinAgain, joinAgain, now, func(context.Context, membership) (bool, error) { return false, nil })
	return n
}

// outcome is what became of a push.
type outcome int

const (
	notWritten outcome = iota
	written
	// writtenOfOthers names blobs that its pusher has not just sent: the hold may refuse to keep those for them.
	writtenOfOthers
	// perhapsWritten is an answer of the PDS's that was lost, or made no sense.
	perhapsWritten
)

// pushing keeps the message of a push before the push is made, so that neither a crash nor an answer that is
// lost lets blobs go that a manifest names. done sends it, forgets it, or leaves it to be sent in a minute; it returns
// a refusal of the hold's to keep the image for this person.
// Errors: *oci.Error where it cannot be kept: then the push must not be made.
func (n *notifier) pushing(ctx context.Context, c registry.Caller, of owner, name oci.Name, at *hold, man registry.Manifest, parsed *oci.Manifest, tags []string) (done func(outcome) error, err error) {
	in := atcr.HoldNotifyManifestInput{
		Operation: "push", Repository: name.Repository, UserDid: of.DID.String(), ManifestDigest: man.Digest.String(),
		Manifest: atcr.HoldNotifyManifestManifestInfo{MediaType: man.MediaType},
	}
	if len(tags) > 0 {
		in.Tag = tags[0]
	}
	if parsed.Config != nil {
		config := blobInfo(*parsed.Config)
		in.Manifest.Config = &config
	}
	for _, l := range parsed.Layers {
		if len(l.URLs) == 0 { // the others are kept elsewhere
			in.Manifest.Layers = append(in.Manifest.Layers, blobInfo(l))
		}
	}
	for _, m := range parsed.Manifests {
		child := atcr.HoldNotifyManifestManifestChild{Digest: m.Digest.String(), Size: m.Size, MediaType: m.MediaType}
		if p := m.Platform; p != nil && len(parsed.Manifests) <= toldPlatforms {
			child.Platform = &atcr.ManifestPlatform{Architecture: p.Architecture, Os: p.OS, Variant: p.Variant}
		}
		in.Manifest.Manifests = append(in.Manifest.Manifests, child)
	}
	var ids []int64
	if at.AllowAllCrew {
		who := membership{of.DID, at.DID}
		if known, err := n.joined.get(ctx, who); err == nil && !known {
			id, err := n.keep(ctx, c, of, at.DID, atcr.HoldRequestCrewNSID, atcr.HoldRequestCrewInput{})
			if err != nil {
				return nil, err
			}
			n.joined.put(who, true)
			ids = append(ids, id)
		}
	}
	id, err := n.keep(ctx, c, of, at.DID, atcr.HoldNotifyManifestNSID, in)
	done = func(what outcome) error {
		return overQuota(of, at, n.settle(context.WithoutCancel(ctx), ids, membership{of.DID, at.DID}, what))
	}
	if err != nil {
		return nil, errors.Join(err, done(notWritten))
	}
	ids = append(ids, id)
	return done, nil
}

// settle sends or forgets the messages of a push. It returns what came of the last one, where that is waited for.
func (n *notifier) settle(ctx context.Context, ids []int64, who membership, what outcome) (answer error) {
	settle := n.queue.Release
	switch what {
	case written, writtenOfOthers:
	case notWritten:
		settle = n.queue.Drop
		n.joined.forget(who)
	case perhapsWritten: // they go when the time is up for which they are held back
		return nil
	}
	for i, id := range ids {
		if what == writtenOfOthers && i == len(ids)-1 {
			bounded, cancel := context.WithTimeout(ctx, patience)
			answer = n.queue.ReleaseAndWait(bounded, id)
			cancel()
			continue
		}
		if err := settle(ctx, id); err != nil {
			n.logger.Warn("a message to a hold is not settled", "hold", who.hold.String(), "error", err)
		}
	}
	return answer
}

// overQuota is the refusal of a hold to keep more for somebody, in words; nil for every other answer. The records are
// written by then: the image can be pulled while others keep its blobs.
func overQuota(of owner, at *hold, err error) error {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	if !ok || e.Name != atcr.HoldNotifyManifestErrorQuotaExceeded {
		return nil
	}
	out := oci.Errorf(oci.CodeDenied, "the quota of %s at the hold %s is used up: it does not keep this image for you, and its blobs go when nobody else needs them. "+
		"Delete images, ask its owner for more, or choose another hold, and push again%s", of.DID, at.DID, said(e))
	out.Err = err
	return out
}

// deleted tells of a manifest that is gone. That it cannot be kept ends nothing: what the hold is not told of, it keeps.
func (n *notifier) deleted(ctx context.Context, c registry.Caller, of owner, repository string, at syntax.DID, d oci.Digest) {
	in := atcr.HoldNotifyManifestInput{Operation: "delete", Repository: repository, UserDid: of.DID.String(), ManifestDigest: d.String()}
	ctx = context.WithoutCancel(ctx)
	id, err := n.keep(ctx, c, of, at, atcr.HoldNotifyManifestNSID, in)
	if err == nil {
		err = n.queue.Release(ctx, id)
	}
	if err != nil {
		n.logger.Error("a hold is not told of a deletion", "hold", at.String(), "did", of.DID.String(), "error", err)
	}
}

// keep adds a message. Errors: *oci.Error where too many wait, the database's.
func (n *notifier) keep(ctx context.Context, c registry.Caller, of owner, at syntax.DID, nsid string, in any) (id int64, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return 0, err
	}
	id, err = n.queue.Add(ctx, outbox.Message{Sender: of.DID.String(), To: at.String(), Kind: nsid, Session: c.Session, Body: body})
	if errors.Is(err, outbox.ErrFull) {
		return 0, &oci.Error{
			Code: oci.CodeTooManyRequests, RetryAfter: time.Minute, Err: err,
			Message: fmt.Sprintf("the hold %s has not been told of your earlier pushes yet: try again later, or choose another hold", at),
		}
	}
	return id, err
}

func blobInfo(d oci.Descriptor) atcr.HoldNotifyManifestBlobInfo {
	return atcr.HoldNotifyManifestBlobInfo{Digest: d.Digest.String(), Size: d.Size, MediaType: d.MediaType}
}

// deliver sends one message. What a hold refuses is refused for good, but for its limits and for a token
// that it does not take. An error without a name is not a hold's, but that of a proxy before one that is being
// started: the message is sent again. A membership is refused for good in any case: who may push without one must not have
// the messages behind it wait.
func (n *notifier) deliver(ctx context.Context, m outbox.Message) error {
	did := syntax.DID(m.To)
	at, err := n.holds.find(ctx, did)
	if err != nil {
		return err
	}
	c := registry.Caller{Subject: m.Sender, Session: m.Session}
	get := n.calls.tokens.ServiceToken
	if m.Kind == atcr.HoldRequestCrewNSID {
		get = n.calls.tokens.OnceToken
	}
	err = n.calls.with(ctx, c, at, m.Kind, get, func(token string) error {
		call, err := xrpc.JSONCall(at.URL, m.Kind, token, json.RawMessage(m.Body))
		if err != nil {
			return err
		}
		return n.calls.upstream.JSON(ctx, call, nil)
	})
	if errors.Is(err, session.ErrGone) {
		return fmt.Errorf("%w: nobody is signed in any more: %w", outbox.ErrRefused, err)
	}
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	if !ok || e.Invalid {
		return err
	}
	switch {
	case m.Kind == atcr.HoldRequestCrewNSID && e.Status/100 == 4:
		return fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	case e.Status == http.StatusTooManyRequests, e.Status == http.StatusRequestTimeout, e.Status == http.StatusUnauthorized:
		return err
	case e.Name != "" && (e.Status/100 == 4 || e.Status == http.StatusNotImplemented):
		return fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	}
	return err
}
