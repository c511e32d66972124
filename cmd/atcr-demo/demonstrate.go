package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/bluesky-social/indigo/atproto/atclient"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"atcr.io/internal/devnet"
)

// roundTripLimit is far beyond what the round trips take: something hangs.
const roundTripLimit = 2 * time.Minute

// demonstrate starts the system, uses it, and keeps it running unless o.once.
func demonstrate(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.log)); err != nil {
		return fmt.Errorf("--log %q is not known; use debug, info, warn or error", o.log)
	}
	say := &teller{out: stdout, start: time.Now()}
	if o.json {
		say.out = stderr
	}
	logger := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	running, s, err := startSystem(ctx, o, logger)
	if err != nil {
		return interrupted(ctx, err)
	}
	err = s.use(running, say)
	if err == nil && o.json {
		err = s.printJSON(stdout)
	}
	if err == nil && !o.once {
		s.tellWhatNext(say)
		say.text("\nRunning until Ctrl-C.%s\n", s.whatHappensToData())
		<-running.Done()
		say.text("Stopping.\n")
	}
	if cause := context.Cause(running); cause != nil && ctx.Err() == nil {
		err = fmt.Errorf("a part of the demo failed: %w", cause)
	}
	return errors.Join(interrupted(ctx, err), s.close())
}

// interrupted is err, or says that Ctrl-C was its cause.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted before the round trips were done")
	}
	return err
}

// use does the round trips and tells what it does.
func (s *system) use(ctx context.Context, say *teller) error {
	ctx, cancel := context.WithTimeout(ctx, roundTripLimit)
	defer cancel()
	say.step("started a directory, a PDS, two holds and an AppView")
	if err := s.chooseHold(ctx); err != nil {
		return fmt.Errorf("write bob's profile: %w", err)
	}
	say.step("bob's profile names his own hold, %s", s.private.did)
	if err := s.aliceRoundTrip(ctx, say); err != nil {
		return err
	}
	return s.bobRoundTrip(ctx, say)
}

// aliceRoundTrip pushes an image to the public hold and pulls it back without an account.
func (s *system) aliceRoundTrip(ctx context.Context, say *teller) error {
	img, err := executableImage("This file came through " + s.registry + ".\n")
	if err != nil {
		return fmt.Errorf("make alice's image: %w", err)
	}
	what, err := contentOf(img)
	if err != nil {
		return err
	}
	say.step("made an image of %s from this program", megabytes(what.size))
	ref, err := s.push(ctx, say, s.alice, "hello", img, what)
	if err != nil {
		return err
	}
	if err := s.pull(ctx, say, ref, authn.Anonymous, "without an account", what); err != nil {
		return err
	}
	return s.stored(s.public, "the public hold", what)
}

// bobRoundTrip pushes an image to bob's own hold, which nobody else can pull.
func (s *system) bobRoundTrip(ctx context.Context, say *teller) error {
	// The text is a new one each time: blobs that are at a hold already are not pushed again.
	text := fmt.Sprintf("Only bob reads this. Written %s.\n", time.Now().Format(time.RFC3339Nano))
	img, err := image(nil, entry{"secret.txt", 0o600, []byte(text)})
	if err != nil {
		return fmt.Errorf("make bob's image: %w", err)
	}
	what, err := contentOf(img)
	if err != nil {
		return err
	}
	ref, err := s.push(ctx, say, s.bob, "secret", img, what)
	if err != nil {
		return err
	}
	if err := s.stored(s.private, "bob's hold", what); err != nil {
		return err
	}
	if err := s.notStored(s.public, "the public hold", what); err != nil {
		return err
	}
	say.step("its blobs are in bob's hold and not in the public one")
	if err := refused(s.fetch(ctx, ref, authn.Anonymous, what)); err != nil {
		return fmt.Errorf("pull %s without an account: %w", ref, err)
	}
	say.step("refused it to a client without an account")
	return s.pull(ctx, say, ref, credentials(s.bob), "as bob.test", what)
}

func credentials(a devnet.Account) authn.Authenticator {
	return &authn.Basic{Username: a.Handle, Password: a.AppPassword}
}

func (s *system) push(ctx context.Context, say *teller, as devnet.Account, repository string, img v1.Image, what *content) (name.Reference, error) {
	ref, err := name.ParseReference(s.registry + "/" + as.Handle + "/" + repository + ":latest")
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(credentials(as))); err != nil {
		return nil, fmt.Errorf("push %s: %w", ref, err)
	}
	say.timed(start, what.size, "pushed %s as %s", ref, as.Handle)
	return ref, nil
}

func (s *system) pull(ctx context.Context, say *teller, ref name.Reference, auth authn.Authenticator, how string, want *content) error {
	start := time.Now()
	if err := s.fetch(ctx, ref, auth, want); err != nil {
		return fmt.Errorf("pull %s %s: %w", ref, how, err)
	}
	say.timed(start, want.size, "pulled it %s, %d digests verified", how, 1+len(want.blobs))
	return nil
}

func (s *system) fetch(ctx context.Context, ref name.Reference, auth authn.Authenticator, want *content) error {
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuth(auth))
	if err != nil {
		return err
	}
	return verify(img, want)
}

// refused is nil where err is a registry's 401 or 403.
func refused(err error) error {
	if err == nil {
		return errors.New("it was not refused")
	}
	if t, ok := errors.AsType[*transport.Error](err); ok && (t.StatusCode == http.StatusUnauthorized || t.StatusCode == http.StatusForbidden) {
		return nil
	}
	return fmt.Errorf("it failed, but not because it was refused: %w", err)
}

// stored looks into a hold's folder for every blob of an image.
func (s *system) stored(at service, whose string, what *content) error {
	for _, b := range what.blobs {
		info, err := os.Stat(at.path(b.Digest))
		if err != nil {
			return fmt.Errorf("%s is not in %s: %w", b.Digest, whose, err)
		}
		if info.Size() != b.Size {
			return fmt.Errorf("%s has %d bytes in %s, not %d", b.Digest, info.Size(), whose, b.Size)
		}
	}
	return nil
}

func (s *system) notStored(at service, whose string, what *content) error {
	for _, b := range what.blobs {
		if _, err := os.Stat(at.path(b.Digest)); err == nil {
			return fmt.Errorf("%s is in %s, where it does not belong", b.Digest, whose)
		}
	}
	return nil
}

// path is where a hold keeps a verified blob.
func (h service) path(d v1.Hash) string {
	return filepath.Join(h.storage, "docker", "registry", "v2", "blobs", d.Algorithm, d.Hex[:2], d.Hex, "data")
}

// chooseHold writes the record by which bob says where his images go, as any atproto client would.
func (s *system) chooseHold(ctx context.Context) error {
	client, err := atclient.LoginWithPasswordHost(ctx, s.network.PDSURL, s.bob.Handle, s.bob.AppPassword, "", nil)
	if err != nil {
		return err
	}
	const collection = "io.atcr.sailor.profile"
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	var answer struct{}
	return client.Post(ctx, "com.atproto.repo.putRecord", map[string]any{
		"repo": s.bob.DID, "collection": collection, "rkey": "self",
		"record": map[string]any{"$type": collection, "defaultHold": s.private.did, "createdAt": now, "updatedAt": now},
	}, &answer)
}

// printJSON is the one line of --json.
func (s *system) printJSON(w io.Writer) error {
	return json.NewEncoder(w).Encode(struct {
		AppView  string           `json:"appview"`
		Hold     string           `json:"hold"`
		HoldDID  string           `json:"holdDid"`
		PDS      string           `json:"pds"`
		PLC      string           `json:"plc"`
		Accounts []devnet.Account `json:"accounts"`
	}{"http://" + s.registry, s.public.url, s.public.did, s.network.PDSURL, s.network.PLCURL, s.network.Accounts})
}
