package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/crew"
	"atcr.io/internal/oci"
	"atcr.io/internal/upload"
	"atcr.io/internal/xrpc"
)

// Quotas are the tiers of a hold, from HOLD_QUOTAS.
type Quotas struct {
	Tiers      map[string]Bytes `json:"tiers"`
	Default    string           `json:"default"`    // of members; "": none
	Registered string           `json:"registered"` // of people who made themselves members; "": none
}

// Bytes is a number of bytes that may be written like "5 GB".
type Bytes int64

// UnmarshalJSON reads a number, or a string for ParseBytes.
func (b *Bytes) UnmarshalJSON(raw []byte) error {
	text := string(raw)
	if len(raw) > 0 && raw[0] == '"' {
		if err := json.Unmarshal(raw, &text); err != nil {
			return err
		}
	}
	n, err := ParseBytes(text)
	*b = n
	return err
}

var byteUnits = []struct {
	name string
	size float64
}{{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"KIB", 1 << 10}, {"MIB", 1 << 20}, {"GIB", 1 << 30}, {"TIB", 1 << 40}, {"B", 1}, {"", 1}}

// ParseBytes reads 1500, "5 GB", "1.5TiB". Errors: anything else, or less than nothing.
func ParseBytes(text string) (Bytes, error) {
	number := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.ToUpper(strings.TrimSpace(text[len(number):]))
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	for _, u := range byteUnits {
		if u.name == unit && err == nil && n >= 0 && n*u.size < 1<<62 {
			return Bytes(n * u.size), nil
		}
	}
	return 0, fmt.Errorf("%q is not a number of bytes; write it like 50 GB", text)
}

func (b Bytes) String() string {
	for _, u := range []struct {
		name string
		size float64
	}{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}} {
		if float64(b) >= u.size {
			return strconv.FormatFloat(float64(b)/u.size, 'f', -1, 64) + " " + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + " B"
}

// defaultOpenQuota is HOLD_OPEN_QUOTA where it is empty.
const defaultOpenQuota = Bytes(50e9)

const maxQuotasBytes = 64 << 10

// parseQuotas reads HOLD_QUOTAS: JSON, or the path of a file that has it.
func parseQuotas(text string) (q Quotas, err error) {
	raw := []byte(text)
	if text != "" && !strings.HasPrefix(strings.TrimSpace(text), "{") {
		f, err := os.Open(text)
		if err != nil {
			return q, fmt.Errorf("neither JSON nor a file: %w", err)
		}
		defer func() { _ = f.Close() }()
		if raw, err = io.ReadAll(io.LimitReader(f, maxQuotasBytes)); err != nil {
			return q, err
		}
	}
	if text == "" {
		return q, nil
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return q, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return q, errors.New("there is more behind the JSON object")
	}
	for what, name := range map[string]string{"default": q.Default, "registered": q.Registered} {
		if _, ok := q.Tiers[name]; name != "" && !ok {
			return q, fmt.Errorf("%s names the tier %q, which is not among the tiers", what, name)
		}
	}
	return q, nil
}

// quota decides how much people may keep. What is in use is remembered for a few seconds, since it is asked
// for each MiB that arrives.
type quota struct {
	hold   *Hold
	quotas Quotas
	open   Bytes

	counting sync.Mutex // held by who counts what all have
	read     func()     // called when the database was read: tests have others act then; nil: not

	mu      sync.Mutex
	used    map[syntax.DID]use
	changes int64 // of what anybody has: what was read before one is not remembered
	all     openUse
	arrived map[syntax.DID]int64 // what was stored while all is counted, and may not be in it; nil: nobody counts
}

type use struct {
	bytes int64
	at    time.Time
}

// openUse is what those keep together whom nobody made members.
type openUse struct {
	use
	policy     *crew.Policy
	registered map[syntax.DID]bool
}

// counts tells whether what did keeps is part of it.
func (o *openUse) counts(did syntax.DID) bool {
	_, known := o.policy.Members[did]
	return did != o.policy.Owner && (!known || o.registered[did])
}

// add adds what did keeps, where it is part of it.
func (o *openUse) add(did syntax.DID, bytes int64) {
	if o.counts(did) {
		o.bytes += bytes
	}
}

const (
	useValid   = 5 * time.Second
	openValid  = time.Minute // that of all people together; what is stored meanwhile is added
	maxUseKept = 10_000
)

// limit is what did may keep: the tier's name, its bytes, and whether there is a limit at all; registered:
// did shares what is open to everybody.
func (q *quota) limit(ctx context.Context, did syntax.DID) (tier string, bytes int64, limited, registered bool, err error) {
	access, err := q.hold.roster.Access(ctx, did)
	if err != nil || access.Owner {
		return "", 0, false, false, err
	}
	member, known, err := q.hold.member(ctx, did)
	if err != nil {
		return "", 0, false, false, err
	}
	if registered = !known; known {
		if registered, err = q.hold.ledger.Registered(ctx, did); err != nil {
			return "", 0, false, false, err
		}
	}
	tier = member.Tier
	if _, ok := q.quotas.Tiers[tier]; !ok {
		if tier = q.quotas.Default; registered && q.quotas.Registered != "" {
			tier = q.quotas.Registered
		}
	}
	max, limited := q.quotas.Tiers[tier]
	return tier, int64(max), limited, registered, nil
}

// allow is asked as bytes of unfinished uploads arrive and at their end, also of those that began before their owner
// was blocked. Errors: *upload.Refused, the database's.
func (q *quota) allow(ctx context.Context, did syntax.DID, arriving int64) error {
	if found, ok := q.hold.blocks.find(did.String()); ok {
		return &upload.Refused{Reason: found.why()}
	}
	tier, most, limited, registered, err := q.limit(ctx, did)
	if err != nil {
		return err
	}
	if limited {
		used, err := q.usage(ctx, did)
		if err != nil {
			return err
		}
		if used+arriving > most {
			return &upload.Refused{Reason: fmt.Sprintf("%s may keep %s at this hold (tier %s) and would have %s: delete images, or ask the hold's owner", did, Bytes(most), tier, Bytes(used+arriving))}
		}
	}
	if !registered {
		return nil
	}
	used, err := q.openUsage(ctx, did)
	if err == nil && used+arriving > int64(q.open) {
		err = &upload.Refused{Reason: fmt.Sprintf("the %s that this hold keeps for people who made themselves members are used up: ask its owner for crew membership, or choose another hold", q.open)}
	}
	return err
}

// notify is allow for blobs that a manifest names and its pusher did not upload.
func (q *quota) notify(ctx context.Context, did syntax.DID, blobs []namedBlob) error {
	var more int64
	for _, b := range blobs {
		counted, err := q.hold.counted(ctx, did, b.Digest)
		if err != nil {
			return err
		}
		if !counted {
			more += b.Size
		}
	}
	err := q.allow(ctx, did, more)
	if refused, ok := errors.AsType[*upload.Refused](err); ok {
		return &xrpc.Error{Status: http.StatusForbidden, Name: atcr.HoldNotifyManifestErrorQuotaExceeded, Message: refused.Reason, Err: err}
	}
	return err
}

func (q *quota) usage(ctx context.Context, did syntax.DID) (int64, error) {
	q.mu.Lock()
	u, ok := q.used[did]
	changes := q.changes
	q.mu.Unlock()
	now := q.hold.now()
	if ok && now.Sub(u.at) < useValid {
		return u.bytes, nil
	}
	_, bytes, err := q.hold.used(ctx, did)
	if err != nil {
		return 0, err
	}
	q.wasRead()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.changes != changes {
		return bytes, nil
	}
	if len(q.used) >= maxUseKept {
		clear(q.used)
	}
	q.used[did] = use{bytes, now}
	return bytes, nil
}

func (q *quota) wasRead() {
	if q.read != nil {
		q.read()
	}
}

// openUsage is what all those keep together whom nobody made members, with what arrives from others than did now.
func (q *quota) openUsage(ctx context.Context, did syntax.DID) (int64, error) {
	if err := q.countOpen(ctx); err != nil {
		return 0, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	sum := q.all.bytes
	q.hold.uploads.Arriving(func(other syntax.DID, bytes int64) {
		if other != did && q.all.counts(other) {
			sum += bytes
		}
	})
	return sum, nil
}

// countOpen counts it anew, where that was long ago.
func (q *quota) countOpen(ctx context.Context) (err error) {
	if q.openIsFresh() {
		return nil
	}
	q.counting.Lock()
	defer q.counting.Unlock()
	if q.openIsFresh() { // somebody else counted
		return nil
	}
	q.mu.Lock()
	q.arrived = map[syntax.DID]int64{}
	q.mu.Unlock()
	o := openUse{use: use{at: q.hold.now()}}
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if err == nil {
			for did, bytes := range q.arrived {
				o.add(did, bytes)
			}
			q.all = o
		}
		q.arrived = nil
	}()
	if o.policy, err = q.hold.roster.policy(ctx); err != nil {
		return err
	}
	if o.registered, err = q.hold.ledger.AllRegistered(ctx); err != nil {
		return err
	}
	// Uploads first: what is named meanwhile is in both rather than in neither.
	if err := q.hold.uploads.Usages(ctx, o.add); err != nil {
		return err
	}
	err = q.hold.ledger.Usages(ctx, o.add)
	q.wasRead()
	return err
}

func (q *quota) openIsFresh() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.all.at.IsZero() && q.hold.now().Sub(q.all.at) < openValid
}

// stored is told of each upload that was completed: it arrives no more, and must not be free until somebody counts.
func (q *quota) stored(did syntax.DID, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.used, did)
	q.changes++
	if q.arrived != nil {
		q.arrived[did] += bytes
	}
	if !q.all.at.IsZero() {
		q.all.add(did, bytes)
	}
}

// forget drops what is remembered of did's use.
func (q *quota) forget(did syntax.DID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.used, did)
	q.changes++
}

// used is what did's manifests name, and what they uploaded that none names yet.
func (h *Hold) used(ctx context.Context, did syntax.DID) (blobs, bytes int64, err error) {
	// Uploads first: what is named meanwhile is in both rather than in neither.
	if blobs, bytes, err = h.uploads.Usage(ctx, did); err != nil {
		return 0, 0, err
	}
	moreBlobs, moreBytes, err := h.ledger.Usage(ctx, did)
	return blobs + moreBlobs, bytes + moreBytes, err
}

// counted tells whether the blob is part of what did uses already.
func (h *Hold) counted(ctx context.Context, did syntax.DID, d oci.Digest) (bool, error) {
	named, err := h.ledger.NamedBy(ctx, h.db.Reader(), did, d)
	if err != nil || named {
		return named, err
	}
	return h.uploads.UploadedBy(ctx, d, did)
}

// member is did's crew record, where there is one.
func (h *Hold) member(ctx context.Context, did syntax.DID) (member atcr.HoldCrew, known bool, err error) {
	p, err := h.roster.policy(ctx)
	if err != nil {
		return member, false, err
	}
	m, known := p.Members[did]
	return atcr.HoldCrew{Member: did.String(), Permissions: m.Permissions, Tier: m.Tier}, known, nil
}

func (h *Hold) getQuota(w http.ResponseWriter, r *http.Request) error {
	text, err := xrpc.RequiredParam(r, "userDid")
	if err != nil {
		return err
	}
	did, err := syntax.ParseDID(text)
	if err != nil {
		return xrpc.Errorf(http.StatusBadRequest, atcr.HoldGetQuotaErrorInvalidUserDid, "userDid must be a DID")
	}
	out := atcr.HoldGetQuotaOutput{UserDid: did.String()}
	if out.UniqueBlobs, out.TotalSize, err = h.used(r.Context(), did); err != nil {
		return err
	}
	tier, most, limited, _, err := h.quota.limit(r.Context(), did)
	if err != nil {
		return err
	}
	if limited {
		out.Tier, out.Limit = tier, &most
	}
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}

func (h *Hold) listTiers(w http.ResponseWriter, _ *http.Request) error {
	out := atcr.HoldListTiersOutput{Tiers: []atcr.HoldListTiersTier{}}
	for name, bytes := range h.quota.quotas.Tiers {
		out.Tiers = append(out.Tiers, atcr.HoldListTiersTier{Name: name, QuotaBytes: int64(bytes), QuotaFormatted: bytes.String()})
	}
	slices.SortFunc(out.Tiers, func(a, b atcr.HoldListTiersTier) int {
		if a.QuotaBytes != b.QuotaBytes {
			return int(max(min(a.QuotaBytes-b.QuotaBytes, 1), -1))
		}
		return strings.Compare(a.Name, b.Name)
	})
	xrpc.WriteJSON(w, http.StatusOK, out)
	return nil
}
