package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
	"atcr.io/internal/plc"
)

// The values of HOLD_DID_METHOD.
const (
	methodWeb = "web"
	methodPLC = "plc"
)

// directoryPatience is how long a first start waits for the did:plc directory.
const directoryPatience = 45 * time.Second

// identify finds out who the hold is and with which key it signs. Where there is no repo yet it makes both;
// a hold that is there keeps its DID.
func (h *Hold) identify(ctx context.Context, stored []syntax.DID) (*atcrypto.PrivateKeyK256, error) {
	h.plc = &plc.Client{URL: h.config.PLCURL, HTTP: httpx.NewClient(httpx.ClientConfig{
		AllowPrivate: true, Timeout: 15 * time.Second, UserAgent: userAgent, // the operator chose it
	})}
	if u, err := url.Parse(h.config.PublicURL); err == nil {
		if parsed, err := syntax.ParseHandle(u.Host); err == nil {
			h.handle = parsed.Normalize().String()
		}
	}
	exists := len(stored) > 0
	if exists {
		h.did = stored[0]
		if err := h.config.keepsDID(h.did); err != nil {
			return nil, err
		}
	}
	key, err := signingKey(h.config.KeyPath, exists && !h.repair.newKey)
	if err != nil || exists {
		return key, err
	}
	switch {
	case h.repair.archive != nil:
		h.did = h.repair.archive.DID
		return key, h.config.keepsDID(h.did)
	case h.config.DIDMethod == methodPLC:
		h.did, err = h.registerDID(ctx, key)
		return key, err
	}
	h.did = h.config.WebDID()
	return key, nil
}

// keepsDID is nil where the settings are for the hold that did names.
func (c *Config) keepsDID(did syntax.DID) error {
	if did.Method() != c.DIDMethod {
		return fmt.Errorf("HOLD_DID_METHOD is %s, but the hold in %s is %s, and a hold keeps its DID: set HOLD_DID_METHOD=%s, or use another HOLD_DATABASE_DIR for a new hold", c.DIDMethod, c.DatabaseDir, did, did.Method())
	}
	if c.DIDMethod == methodWeb && did != c.WebDID() {
		return fmt.Errorf("the database in %s belongs to the hold %s, but HOLD_PUBLIC_URL names %s: set HOLD_PUBLIC_URL to what it was, or use another HOLD_DATABASE_DIR", c.DatabaseDir, did, c.WebDID())
	}
	return nil
}

// registerDID makes a did:plc. Its first operation is kept before the directory gets it, so that a start that was
// cut short makes no second one.
func (h *Hold) registerDID(ctx context.Context, key atcrypto.PrivateKey) (syntax.DID, error) {
	raw, err := h.state.get(ctx, stateGenesis)
	if err != nil {
		return "", err
	}
	if raw == "" {
		if raw, err = h.genesis(key); err != nil {
			return "", err
		}
		if err := h.state.set(ctx, stateGenesis, raw); err != nil {
			return "", err
		}
	}
	op, err := plc.Parse([]byte(raw))
	if err != nil {
		return "", err
	}
	did, err := op.DID()
	if err != nil {
		return "", err
	}
	patience := h.config.plcPatience
	if patience == 0 {
		patience = directoryPatience
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for pause := time.Second; ; pause *= 2 {
		_, err := h.plc.Last(ctx, did)
		if errors.Is(err, plc.ErrNotFound) {
			err = h.plc.Submit(ctx, did, op)
		}
		if !errors.Is(err, plc.ErrUnavailable) {
			return did, err
		}
		h.log.Warn("the did:plc directory does not answer; trying again", "error", err)
		again := time.NewTimer(pause)
		select {
		case <-again.C:
			continue
		case <-timer.C:
			err = fmt.Errorf("%w: a new did:plc hold is registered there at its first start. Check HOLD_PLC_URL and start again: what was made so far is kept", err)
		case <-ctx.Done():
			err = ctx.Err()
		}
		again.Stop()
		return "", err
	}
}

// genesis is a new hold's first operation, as JSON, signed with its rotation key.
func (h *Hold) genesis(key atcrypto.PrivateKey) (string, error) {
	rotation, err := loadKey(h.config.RotationKeyPath)
	if errors.Is(err, fs.ErrNotExist) {
		rotation, err = makeKey(h.config.RotationKeyPath)
	}
	if err != nil {
		return "", fmt.Errorf("HOLD_ROTATION_KEY_PATH: %w", err)
	}
	keyDID, err := didKey(key)
	if err != nil {
		return "", err
	}
	rotationDID, err := didKey(rotation)
	if err != nil {
		return "", err
	}
	op := h.wanted(&plc.Operation{RotationKeys: []string{rotationDID}}, keyDID, rotationDID)
	if err := op.Sign(rotation); err != nil {
		return "", err
	}
	raw, err := json.Marshal(op)
	return string(raw), err
}

func didKey(key atcrypto.PrivateKey) (string, error) {
	public, err := key.PublicKey()
	if err != nil {
		return "", err
	}
	return public.DIDKey(), nil
}

// wanted is what the directory should say of this hold, where it says from now: key, address and handle are
// ours to say, and so are the rotation keys where there is a HOLD_RECOVERY_KEY. Other entries stay.
func (h *Hold) wanted(from *plc.Operation, keyDID, rotationDID string) *plc.Operation {
	op := &plc.Operation{
		Type: plc.TypeOperation, RotationKeys: from.RotationKeys, AlsoKnownAs: []string{},
		VerificationMethods: map[string]string{}, Services: map[string]plc.Service{},
	}
	for id, key := range from.VerificationMethods {
		op.VerificationMethods[id] = key
	}
	for id, s := range from.Services {
		op.Services[id] = s
	}
	op.VerificationMethods["atproto"] = keyDID
	op.Services["atproto_pds"] = plc.Service{Type: "AtprotoPersonalDataServer", Endpoint: h.config.PublicURL}
	op.Services["atcr_hold"] = plc.Service{Type: "AtcrHoldService", Endpoint: h.config.PublicURL}
	if h.handle != "" {
		op.AlsoKnownAs = append(op.AlsoKnownAs, "at://"+h.handle)
	}
	if recovery := h.config.RecoveryKey; recovery != "" && rotationDID != "" && recovery != rotationDID {
		op.RotationKeys = []string{recovery, rotationDID}
	}
	return op
}

// errDirectoryKey says that the directory names another signing key: this database, or its key, is older than
// the last rotation, or somebody else moved the identity.
var errDirectoryKey = errors.New("the directory names another signing key")

// updateDirectory makes the directory say what the hold is. The key it changes only where newKey says that it
// is to be changed: an old copy of a hold must not put back an old key.
//
// Errors: plc.ErrUnavailable; errDirectoryKey; others are sentences for an operator.
func (h *Hold) updateDirectory(ctx context.Context, keyDID string, newKey bool) error {
	last, err := h.plc.Last(ctx, h.did)
	if errors.Is(err, plc.ErrNotFound) {
		return fmt.Errorf("%w: %s does not know %s. Is HOLD_PLC_URL the directory where this hold was registered?", err, h.config.PLCURL, h.did)
	}
	if err != nil {
		return err
	}
	now := last.Operation
	if now.Type == plc.TypeTombstone {
		return fmt.Errorf("the directory says that %s was given up: its rotation key can undo that for 72 hours (docs/hold.md, \"Recovery\")", h.did)
	}
	if has := now.VerificationMethods["atproto"]; has != keyDID && !newKey {
		return fmt.Errorf("%w (%s) than %s (%s): this hold's database or key is older than the last change of its key. `atcr-hold key rotate` gives it a new one, and tells the directory", errDirectoryKey, has, h.config.KeyPath, keyDID)
	}
	rotation, rotationDID, err := h.rotationKey()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next := h.wanted(now, keyDID, rotationDID)
	if sameIdentity(now, next) {
		return nil
	}
	if rotation == nil {
		return fmt.Errorf("the directory has to be told of the hold's key or address, and that takes its rotation key: %s does not exist. Put the key there, as `atcr-hold key export-rotation` wrote it (HOLD_ROTATION_KEY_PATH), or set HOLD_PUBLIC_URL to what it was", h.config.RotationKeyPath)
	}
	next.Prev = &last.CID
	if err := next.Sign(rotation); err != nil {
		return err
	}
	if next.Verify(now.RotationKeys) != nil {
		return fmt.Errorf("the key in HOLD_ROTATION_KEY_PATH %s (%s) is none of this hold's rotation keys, which are %v", h.config.RotationKeyPath, rotationDID, now.RotationKeys)
	}
	return h.plc.Submit(ctx, h.did, next)
}

// rotationKey reads the key that may change the hold's did:plc. Errors: fs.ErrNotExist.
func (h *Hold) rotationKey() (key *atcrypto.PrivateKeyK256, did string, err error) {
	if key, err = loadKey(h.config.RotationKeyPath); err != nil {
		return nil, "", fmt.Errorf("HOLD_ROTATION_KEY_PATH: %w", err)
	}
	did, err = didKey(key)
	return key, did, err
}

// sameIdentity compares all but signatures.
func sameIdentity(a, b *plc.Operation) bool {
	text := func(op plc.Operation) string {
		op.Sig, op.Prev = "", nil
		raw, err := json.Marshal(&op)
		if err != nil {
			panic("hold: encode operation: " + err.Error())
		}
		return string(raw)
	}
	return text(*a) == text(*b)
}

// settleIdentity tells directory and followers what changed since they were last told: key, address, handle. A
// directory that does not answer keeps no hold down: it is told later.
func (h *Hold) settleIdentity(ctx context.Context) error {
	h.identityMu.Lock()
	defer h.identityMu.Unlock()
	if h.settled {
		return nil
	}
	if h.did.Method() == methodPLC {
		err := h.updateDirectory(ctx, h.keyDID(), h.repair.newKey || h.repair.archive != nil)
		switch {
		case errors.Is(err, plc.ErrUnavailable), errors.Is(err, errDirectoryKey) && h.repair.anyKey:
			h.log.Warn("whether the did:plc directory agrees with this hold is not known", "error", err)
			return nil
		case err != nil:
			return err
		}
	}
	document, err := json.Marshal(h.document())
	if err != nil {
		return err
	}
	said, err := h.state.get(ctx, stateAnnounced)
	if err != nil {
		return err
	}
	if said != "" && said != string(document) {
		if err := h.repo.Resign(ctx, nil); err != nil {
			return err
		}
		h.log.Info("followers were told that the hold's key, address or handle changed")
	}
	return h.announced(ctx)
}

// announced notes that directory and followers know of the document as it is.
func (h *Hold) announced(ctx context.Context) error {
	document, err := json.Marshal(h.document())
	if err == nil {
		err = h.state.set(ctx, stateAnnounced, string(document))
	}
	h.settled = err == nil
	return err
}
