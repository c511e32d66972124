package hold

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// directory: what the did:plc directory says of this hold is what it is.
func (d *doctor) directory(ctx context.Context) {
	const what = "did:plc directory"
	if d.did.Method() != methodPLC {
		d.found(what, "", nil, "not needed: the hold is "+d.did.String())
		return
	}
	last, err := d.plc.Last(ctx, d.did)
	advice := "let the hold reach HOLD_PLC_URL, which must be the directory where it was registered: " + d.config.PLCURL
	if err == nil {
		switch op := last.Operation; {
		case op.VerificationMethods["atproto"] != d.keyDID():
			advice = "run `atcr-hold key rotate`; where you did not change the key yourself, see docs/hold.md, \"Recovery\""
			err = fmt.Errorf("it names the signing key %s, but the hold signs with %s", op.VerificationMethods["atproto"], d.keyDID())
		case !sameIdentity(op, d.wanted(op, d.keyDID(), "")):
			advice = "restart the hold with its rotation key at HOLD_ROTATION_KEY_PATH; its log says why the directory was not told"
			err = errors.New("it has another address or handle than this hold's")
		}
	}
	d.found(what, advice, err, "it says what this hold is")
}

// rotation: the key without which the identity cannot be changed is somewhere else as well.
func (d *doctor) rotation(ctx context.Context) {
	const what = "rotation key"
	if d.did.Method() != methodPLC {
		d.found(what, "", nil, "not needed: who has the host name has the identity")
		return
	}
	exported, err := d.state.get(ctx, stateExported)
	if err != nil {
		d.found(what, "", err, "")
		return
	}
	_, key, err := d.rotationKey()
	switch {
	case errors.Is(err, fs.ErrNotExist) && exported != "":
		d.found(what, "", nil, "it was written out and is not on this machine")
	case errors.Is(err, fs.ErrNotExist):
		d.found(what, "put it at HOLD_ROTATION_KEY_PATH; where it is lost for good, the hold's key and address can never be changed again", err, "")
	case err != nil:
		d.found(what, "put the hold's rotation key there", err, "")
	case exported != key:
		d.found(what, "write it out with `atcr-hold key export-rotation FILE`, and keep that file where this machine's end does not reach it", errors.New("there is no copy of it elsewhere that this hold knows of: lost with this machine, the identity is lost with it"), "")
	default:
		d.found(what, "", nil, "it is here, and was written out")
	}
}

// names: container clients send an AppView's credentials to every host below its name, and storage refuses
// requests that bring such.
func (d *doctor) names(context.Context) {
	const what = "host names"
	hosts := map[string]string{"HOLD_PUBLIC_URL": d.config.PublicURL}
	if d.config.StorageDriver == "s3" && d.config.S3PublicEndpoint != "" {
		hosts["S3_PUBLIC_ENDPOINT"] = d.config.S3PublicEndpoint
	}
	appviews := []string{}
	for _, did := range d.config.TrustedAppViews {
		if host, err := url.PathUnescape(syntax.DID(did).Identifier()); err == nil && syntax.DID(did).Method() == methodWeb {
			appviews = append(appviews, hostname("//"+host))
		}
	}
	if d.appview != "" {
		if !strings.Contains(d.appview, "://") {
			d.appview = "https://" + d.appview
		}
		appviews = append(appviews, hostname(d.appview))
	}
	for _, appview := range appviews {
		for setting, address := range hosts {
			host := hostname(address)
			if host == appview && !loopback(host) || strings.HasSuffix(host, "."+appview) {
				d.found(what, "give "+setting+" a name that is neither the AppView's nor below it", fmt.Errorf("%s is %s, and an AppView is %s: clients would send its credentials there", setting, host, appview), "")
				return
			}
		}
	}
	fine := "neither hold nor storage is under the name of an AppView in HOLD_TRUSTED_APPVIEWS"
	if len(appviews) == 0 {
		fine = "no AppView is known here to compare with: atcr-hold doctor --appview HOST does"
	}
	d.found(what, "", nil, fine)
}

func hostname(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
}

func loopback(host string) bool { return host == "localhost" || strings.HasPrefix(host, "127.") }

// revs: relays drop what comes with a time that is not yet.
func (d *doctor) revs(ctx context.Context) {
	const what = "revs"
	head, err := d.repo.Head(ctx)
	if err != nil {
		d.found(what, "", err, "")
		return
	}
	if ahead := syntax.TID(head.Rev).Time().Sub(d.now()).Truncate(time.Second); ahead > maxSkew {
		err = fmt.Errorf("the newest commit is %s ahead of the clock, which was wrong then or is now: relays drop it", ahead)
	}
	d.found(what, "set the machine's clock with NTP; once it is right, relays take commits again when that time has come", err, "the newest commit is not ahead of the clock")
}
