package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"

	"atcr.io/internal/daemon"
	"atcr.io/internal/httpx"
)

const (
	doctorTimeout = 15 * time.Second
	// maxSkew is how far clocks may be apart: services take tokens from a little ahead, and S3 from 15 minutes.
	maxSkew = 30 * time.Second
	// expiresSoon is when a certificate that renews itself would have been renewed.
	expiresSoon = 7 * 24 * time.Hour
)

// finding is one thing that doctor looked at.
type finding struct {
	What    string `json:"what"`
	OK      bool   `json:"ok"`
	Finding string `json:"finding"`
	Advice  string `json:"advice,omitempty"` // what to do; "" where it is fine
}

// doctor looks at a hold from outside, as clients and relays do.
type doctor struct {
	*Hold
	client *http.Client
	tell   say
	bad    int
	// appview is the host name of an AppView that is not among those of the settings; "" for none.
	appview string
}

func (d *doctor) found(what, advice string, err error, fine string) {
	f := finding{What: what, OK: err == nil, Finding: fine}
	mark := "ok  "
	if err != nil {
		mark, f.Finding, f.Advice = "BAD ", err.Error(), advice
		d.bad++
	}
	text := mark + what + ": " + f.Finding
	if f.Advice != "" {
		text += "\n     → " + f.Advice
	}
	d.tell(Line{Text: text, Data: f})
}

// adminDoctor runs all checks, and fails where one did.
func adminDoctor(ctx context.Context, h *Hold, r *http.Request, tell say) error {
	d := &doctor{Hold: h, tell: tell, appview: r.URL.Query().Get("appview"), client: httpx.NewClient(httpx.ClientConfig{AllowPrivate: true, Timeout: doctorTimeout, UserAgent: userAgent})}
	for _, check := range []func(context.Context){
		d.document, d.directory, d.rotation, d.names, d.stream, d.clock, d.revs, d.storage, d.presigned, d.parts, d.checksums, d.relays, d.recorded,
	} {
		check(ctx)
	}
	if d.bad > 0 {
		return fmt.Errorf("%d findings need attention", d.bad)
	}
	return nil
}

// fetched is an answer whose body, of at most 1 MiB, was read.
type fetched struct {
	*http.Response
	body []byte
}

func (d *doctor) get(ctx context.Context, target string, header ...string) (fetched, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return fetched{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return d.do(req)
}

func (d *doctor) do(req *http.Request) (fetched, error) {
	res, err := d.client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, which may be a secret
		}
		return fetched{}, err
	}
	body, err := httpx.ReadLimited(res.Body, 1<<20)
	return fetched{res, body}, errors.Join(err, res.Body.Close())
}

// document: the public URL leads here, with a good certificate.
func (d *doctor) document(ctx context.Context) {
	const what = "public URL"
	advice := "let " + d.config.PublicURL + " lead to HOLD_SERVER_ADDR (" + d.config.ServerAddr + ") of the running hold, with a certificate that is valid"
	res, err := d.get(ctx, d.config.PublicURL+"/.well-known/did.json")
	if err != nil {
		d.found(what, advice, err, "")
		return
	}
	if res.StatusCode != http.StatusOK {
		d.found(what, advice, fmt.Errorf("did.json is answered with %s", res.Status), "")
		return
	}
	ours, err := json.Marshal(d.Hold.document())
	if err != nil {
		d.found(what, "", err, "")
		return
	}
	var theirs, mine any
	if err := errors.Join(json.Unmarshal(res.body, &theirs), json.Unmarshal(ours, &mine)); err != nil || fmt.Sprint(theirs) != fmt.Sprint(mine) {
		d.found(what, "another server, or an older hold, answers there: "+advice, errors.New("did.json is not this hold's"), "")
		return
	}
	if public, err := url.Parse(d.config.PublicURL); err == nil && public.Scheme == "http" && !daemon.PrivateHost(public.Hostname()) {
		d.found(what, "put a proxy with a certificate before the hold, and https:// into HOLD_PUBLIC_URL", errors.New("it is http: no relay, PDS or container client trusts that"), "")
		return
	}
	if err := d.handleLeadsHere(ctx); err != nil {
		d.found(what, "let the proxy pass /.well-known/atproto-did on as well", err, "")
		return
	}
	fine := d.config.PublicURL + " leads here, and names " + d.did.String()
	if res.TLS != nil && len(res.TLS.PeerCertificates) > 0 {
		ends := res.TLS.PeerCertificates[0].NotAfter
		if left := ends.Sub(d.now()); left < expiresSoon {
			err = fmt.Errorf("the certificate ends on %s, in %d days", ends.UTC().Format(time.DateOnly), int(left/(24*time.Hour)))
		}
		fine += ", with a certificate until " + ends.UTC().Format(time.DateOnly)
	}
	d.found(what, "renew the certificate; see why what renews it did not", err, fine)
}

// handleLeadsHere: the hold's handle is its host name, where that can be one.
func (d *doctor) handleLeadsHere(ctx context.Context) error {
	if d.handle == "" {
		return nil
	}
	res, err := d.get(ctx, d.config.PublicURL+"/.well-known/atproto-did")
	if err == nil && strings.TrimSpace(string(res.body)) != d.did.String() {
		err = fmt.Errorf("the handle %s does not lead to %s: /.well-known/atproto-did says something else", d.handle, d.did)
	}
	return err
}

// stream: proxies are known to lose WebSockets.
func (d *doctor) stream(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	conn, res, err := websocket.Dial(ctx, d.config.PublicURL+"/xrpc/com.atproto.sync.subscribeRepos?cursor=0", nil)
	if res != nil && res.Body != nil {
		defer func() { _ = res.Body.Close() }()
	}
	if err == nil {
		_, _, err = conn.Read(ctx)
		_ = conn.CloseNow()
	}
	d.found("firehose", "let the proxy pass WebSockets on: Upgrade and Connection headers, HTTP/1.1 to the hold, no buffering, timeouts over 60 s", err, "events come through")
}

// clock: the directory, by which it is known who calls, answers, and tells the same time.
func (d *doctor) clock(ctx context.Context) {
	const what, advice = "clock", "set the machine's clock, with NTP"
	res, err := d.get(ctx, strings.TrimSuffix(d.config.PLCURL, "/")+"/_health")
	if err == nil && res.StatusCode >= http.StatusInternalServerError {
		err = fmt.Errorf("%s answers %s", d.config.PLCURL, res.Status)
	}
	d.found("identities", "let the hold reach HOLD_PLC_URL ("+d.config.PLCURL+"), through firewall and name server: without it, it cannot check who calls it, and refuses them", err, "their directory answers")
	if err != nil {
		d.found(what, "", nil, "there is nothing to compare it with")
		return
	}
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		d.found(what, "", nil, "the directory does not tell the time")
		return
	}
	skew := d.now().Sub(at).Truncate(time.Second)
	if skew.Abs() > maxSkew {
		err = fmt.Errorf("it is %s away from that of %s", skew, d.config.PLCURL)
	}
	d.found(what, advice, err, "it agrees with the directory's")
}

// relays: whether each knows this hold.
func (d *doctor) relays(ctx context.Context) {
	public, err := url.Parse(d.config.PublicURL)
	if err != nil || daemon.PrivateHost(public.Hostname()) || len(d.config.Relays) == 0 {
		d.found("relays", "", nil, "none is asked to read this hold")
		return
	}
	for _, relay := range d.config.Relays {
		if !strings.Contains(relay, "://") {
			relay = "https://" + relay
		}
		var status struct{ Status string }
		res, err := d.get(ctx, strings.TrimSuffix(relay, "/")+"/xrpc/com.atproto.sync.getHostStatus?hostname="+url.QueryEscape(public.Host))
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("it does not know this hold (%s)", res.Status)
		}
		if err == nil {
			err = json.Unmarshal(res.body, &status)
		}
		if err == nil && status.Status != "active" && status.Status != "idle" {
			err = fmt.Errorf("the hold's status there is %q", status.Status)
		}
		d.found("relay "+relay, "atcr-hold request-crawl; where that does not help, ask the relay's operator", err, "status "+status.Status)
	}
}

// recorded: an AppView told this hold of manifests, without which nothing is collected.
func (d *doctor) recorded(ctx context.Context) {
	told, err := d.ledger.Told(ctx)
	fine := "manifests are announced to this hold"
	if !told {
		fine = "no manifest was announced yet, so that nothing is collected"
	}
	d.found("records", "", err, fine)
}
