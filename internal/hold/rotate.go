package hold

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/bluesky-social/indigo/atproto/atcrypto"

	"atcr.io/internal/plc"
)

// nextKeyPath is where a key waits that a rotation has made and not yet taken into use.
func (h *Hold) nextKeyPath() string { return h.config.KeyPath + ".next" }

// chooseKey is the key that the repo at hand is signed with: the one in the key file, or the next one, where a
// rotation was cut short between the commit and the file. pending is a next key that is not in use yet.
func (h *Hold) chooseKey(ctx context.Context, current *atcrypto.PrivateKeyK256) (key, pending *atcrypto.PrivateKeyK256, err error) {
	next, err := loadKey(h.nextKeyPath())
	if errors.Is(err, fs.ErrNotExist) {
		return current, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	public, err := next.PublicKey()
	if err != nil {
		return nil, nil, err
	}
	used, err := h.host.SignedWith(ctx, h.did, public)
	if err != nil || !used {
		return current, next, err
	}
	return next, nil, h.keepKey(next)
}

// keepKey puts the next key where the key is, durably. Where a file cannot be replaced, as one that is mounted
// by itself, it is written over: the next one stays until that was done.
func (h *Hold) keepKey(key *atcrypto.PrivateKeyK256) error {
	err := os.Rename(h.nextKeyPath(), h.config.KeyPath)
	if err != nil {
		err = overwrite(h.config.KeyPath, key.Bytes())
		if err == nil {
			err = os.Remove(h.nextKeyPath())
		}
	}
	if err != nil {
		return fmt.Errorf("the hold signs with the key in %s now: move it to %s yourself: %w", h.nextKeyPath(), h.config.KeyPath, err)
	}
	return syncDir(filepath.Dir(h.config.KeyPath))
}

func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// rotateKey gives the hold a new signing key: it is made and durable, the directory of a did:plc is told, the
// repo is signed anew, followers are told, and the key file is replaced, in this order. Cut short, it goes on
// where it was at the next start or rotation.
func (h *Hold) rotateKey(ctx context.Context) error {
	h.identityMu.Lock()
	defer h.identityMu.Unlock()
	next, err := loadKey(h.nextKeyPath())
	if errors.Is(err, fs.ErrNotExist) {
		next, err = makeKey(h.nextKeyPath())
	}
	if err != nil {
		return err
	}
	return h.useKey(ctx, next)
}

// useKey takes the next key into use.
func (h *Hold) useKey(ctx context.Context, next *atcrypto.PrivateKeyK256) error {
	keyDID, err := didKey(next)
	if err != nil {
		return err
	}
	if h.did.Method() == methodPLC {
		err := h.updateDirectory(ctx, keyDID, true)
		if errors.Is(err, plc.ErrUnavailable) { // it may have taken it
			return fmt.Errorf("%w: the new key is in %s; run `atcr-hold key rotate` again when the directory answers", err, h.nextKeyPath())
		}
		if err != nil {
			return errors.Join(err, os.Remove(h.nextKeyPath()))
		}
	}
	public, links := h.public.Load(), h.links.Load()
	if err := h.setKey(next); err != nil {
		return err
	}
	if err := h.repo.Resign(ctx, next); err != nil {
		h.public.Store(public)
		h.links.Store(links)
		return fmt.Errorf("the repo was not signed anew: run `atcr-hold key rotate` again: %w", err)
	}
	if err := h.keepKey(next); err != nil {
		return err
	}
	return h.announced(ctx)
}

func adminKeyShow(ctx context.Context, h *Hold, _ *http.Request, tell say) error {
	head, err := h.repo.Head(ctx)
	if err != nil {
		return err
	}
	data := map[string]any{"did": h.did, "signingKey": h.keyDID(), "signingKeyFile": h.config.KeyPath, "rev": head.Rev}
	text := fmt.Sprintf("%s signs with %s\n  in %s", h.did, h.keyDID(), h.config.KeyPath)
	if h.did.Method() == methodPLC {
		_, rotation, err := h.rotationKey()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			text += "\nits rotation key is not on this machine"
		case err != nil:
			return err
		default:
			text += fmt.Sprintf("\nits rotation key is %s\n  in %s", rotation, h.config.RotationKeyPath)
			data["rotationKey"], data["rotationKeyFile"] = rotation, h.config.RotationKeyPath
		}
	}
	tell(Line{Text: text, Data: data})
	return nil
}

func adminKeyRotate(ctx context.Context, h *Hold, _ *http.Request, tell say) error {
	before := h.keyDID()
	if err := h.rotateKey(ctx); err != nil {
		return err
	}
	tell(Line{
		Text: fmt.Sprintf("the hold signs with %s now, and no more with %s.\nBackups from before have the old key: make a new one", h.keyDID(), before),
		Data: map[string]any{"signingKey": h.keyDID(), "before": before},
	})
	return nil
}

// adminKeyExport writes the rotation key out: into a file, or as the text that it tells.
func adminKeyExport(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	if h.did.Method() != methodPLC {
		return fmt.Errorf("%s has no rotation key: who has the host name has the identity", h.did)
	}
	key, did, err := h.rotationKey()
	if err != nil {
		return err
	}
	if path := r.URL.Query().Get("file"); path != "" {
		err := create(path, func(f *os.File) error { _, err := f.WriteString(key.Multibase() + "\n"); return err })
		if err != nil {
			return err
		}
		tell(Line{Text: fmt.Sprintf("the rotation key %s is in %s. Keep it where this machine's end does not reach it: who has it can take the hold's identity", did, path), Data: map[string]any{"rotationKey": did, "file": path}})
	} else {
		tell(Line{Text: key.Multibase(), Data: map[string]any{"rotationKey": did, "privateKeyMultibase": key.Multibase()}})
	}
	return h.state.set(ctx, stateExported, did)
}
