package hold

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"

	"github.com/bluesky-social/indigo/atproto/atcrypto"

	"atcr.io/internal/pds"
)

// repair is what a command does to a repo before it is opened, and what the opening then overlooks.
type repair struct {
	rebuild bool         // a new head is made of the records
	archive *pds.Archive // what the repo becomes
	// archiveKey is what the archive may have been signed with beside the hold's key.
	archiveKey atcrypto.PublicKey
	newKey     bool // a signing key that is missing is made, and the directory told
	anyKey     bool // the directory may name another key: the command sets that right
	announces  bool // the command ends a restore itself
	tell       say
}

// repairFor is what a command needs that works on a hold which would not start.
func repairFor(name string, r *http.Request, tell say) repair {
	switch name {
	case "repo rebuild":
		return repair{rebuild: true, newKey: r.URL.Query().Get("new-key") != "", tell: tell}
	case "announce":
		return repair{announces: true}
	case "key rotate":
		return repair{anyKey: true}
	}
	return repair{}
}

// run repairs. The ledger is to follow from what the records are then: that is noted first, so that it is done
// even where the process ends in between.
func (p *repair) run(ctx context.Context, h *Hold, key *atcrypto.PrivateKeyK256) error {
	if p.archive == nil && !p.rebuild {
		return nil
	}
	if err := h.ledger.Reset(ctx); err != nil {
		return err
	}
	switch {
	case p.archive != nil:
		return p.importArchive(ctx, h, key)
	case p.rebuild:
		end := p.tell.working(progressEvery, "reading every record", nil)
		lost := 0
		records, err := h.host.Rebuild(ctx, h.did, key, h.handle, func(path string) {
			lost++
			p.tell(Line{Text: "damaged, and no more: " + path, Data: map[string]any{"lost": path}})
		})
		end()
		if err != nil {
			return err
		}
		p.tell(Line{Text: fmt.Sprintf("the repo was signed anew over %d records; %d were damaged", records, lost), Data: map[string]any{"records": records, "damaged": lost}})
	}
	return nil
}

func (p *repair) importArchive(ctx context.Context, h *Hold, key *atcrypto.PrivateKeyK256) error {
	if p.archive.DID != h.did {
		return fmt.Errorf("the CAR is the repo of %s, this hold is %s", p.archive.DID, h.did)
	}
	if err := p.believe(ctx, h, key); err != nil {
		return err
	}
	defer p.tell.working(progressEvery, "writing the records", nil)()
	return h.host.Import(ctx, p.archive, key, h.handle, func(path, blob string) {
		p.tell(Line{Text: "a blob is missing: " + path + " names " + blob, Data: map[string]any{"record": path, "missing": blob}})
	})
}

// believe is nil where the hold's key, the one that the directory names or the one that the operator named
// signed the archive.
func (p *repair) believe(ctx context.Context, h *Hold, key *atcrypto.PrivateKeyK256) error {
	own, err := key.PublicKey()
	if err != nil {
		return err
	}
	keys := []atcrypto.PublicKey{own}
	if p.archiveKey != nil {
		keys = append(keys, p.archiveKey)
	}
	if h.did.Method() == methodPLC {
		last, err := h.plc.Last(ctx, h.did)
		if err != nil {
			return err
		}
		if named, err := atcrypto.ParsePublicDIDKey(last.Operation.VerificationMethods["atproto"]); err == nil {
			keys = append(keys, named)
		}
	}
	for _, k := range keys {
		if err = p.archive.Verify(k); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w, nor with another that is known here. Where it was made before a change of key, name that key with --key did:key:…", err)
}

// adminRebuild says what came of it: the repair was done as the hold was opened.
func adminRebuild(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	if !h.repair.rebuild {
		return errors.New("a hold that runs needs no rebuilding: stop it first")
	}
	return adminVerify(ctx, h, r, tell)
}

// Import makes the repo of the hold of config, which must not run, what a CAR has: in one commit, with a rev
// behind those of both. The CAR must be signed with the hold's key, or with knownKey (a did:key, "" for none).
// Where there is no hold in config's folder it becomes the one that the CAR names.
//
// Errors: sentences for an operator.
func Import(ctx context.Context, config Config, logger *slog.Logger, car io.Reader, knownKey string, tell func(Line)) error {
	say := serial(tell)
	config.repair = repair{tell: say}
	if knownKey != "" {
		key, err := atcrypto.ParsePublicDIDKey(knownKey)
		if err != nil {
			return fmt.Errorf("--key: %q is not a public key; it looks like did:key:z…", knownKey)
		}
		config.repair.archiveKey = key
	}
	if err := os.MkdirAll(config.DatabaseDir, 0o700); err != nil {
		return fmt.Errorf("HOLD_DATABASE_DIR: %w", err)
	}
	end := say.working(progressEvery, "reading the CAR", nil)
	archive, err := pds.ReadArchive(ctx, car, config.DatabaseDir)
	end()
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	config.repair.archive = archive
	say(Line{Text: fmt.Sprintf("it is the repo of %s with %d records, rev %s", archive.DID, archive.Records(), archive.Rev), Data: map[string]any{"did": archive.DID, "records": archive.Records(), "rev": archive.Rev}})
	return withHold(ctx, config, logger, func(h *Hold) error { return adminVerify(ctx, h, nil, say) })
}
