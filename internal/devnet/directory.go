package devnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/httpx"
	"atcr.io/internal/plc"
	"atcr.io/internal/xrpc"
)

// plcError is an answer of the directory that is no success.
type plcError struct {
	status  int
	message string
}

func (e *plcError) Error() string { return e.message }

// writePLCError is the directory's error form, which is not XRPC's: a message alone.
func writePLCError(w http.ResponseWriter, err error) (int, string) {
	e, ok := errors.AsType[*plcError](err)
	if !ok {
		e = &plcError{http.StatusInternalServerError, "internal server error"}
	}
	xrpc.WriteJSON(w, e.status, map[string]string{"message": e.message})
	return e.status, ""
}

// logEntry is an operation with what the audit log says of it.
type logEntry struct {
	DID       syntax.DID     `json:"did"`
	Operation *plc.Operation `json:"operation"`
	CID       string         `json:"cid"`
	Nullified bool           `json:"nullified"`
	CreatedAt string         `json:"createdAt"`
}

// directory is a did:plc directory that keeps its operations in memory. It verifies hashes and signatures
// as the real one does; what it leaves out is recovery: an operation follows the newest one or is refused.
type directory struct {
	mu   sync.RWMutex
	logs map[syntax.DID][]logEntry
	now  func() time.Time
}

func newDirectory(s *state, now func() time.Time) *directory {
	return &directory{logs: maps.Clone(s.Operations), now: now}
}

// handler has the routes of plc.directory.
func (d *directory) handler(a *httpx.Adapter) http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]httpx.Handler{
		"GET /_health":         d.getHealth,
		"GET /{did}":           d.getDocument,
		"POST /{did}":          d.postOperation,
		"GET /{did}/data":      d.getData,
		"GET /{did}/log":       d.getLog,
		"GET /{did}/log/last":  d.getLast,
		"GET /{did}/log/audit": d.getAudit,
	} {
		mux.Handle(pattern, a.Wrap(pattern, writePLCError, h))
	}
	return mux
}

func (d *directory) getHealth(w http.ResponseWriter, _ *http.Request) error {
	xrpc.WriteJSON(w, http.StatusOK, map[string]string{"version": "devnet"})
	return nil
}

func (d *directory) postOperation(w http.ResponseWriter, r *http.Request) error {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, plc.MaxOperationBytes+1))
	if err != nil {
		return &plcError{http.StatusBadRequest, "the operation is too large or was cut"}
	}
	op, err := plc.Parse(raw)
	if err != nil {
		return &plcError{http.StatusBadRequest, "Invalid operation: " + err.Error()}
	}
	if err := d.apply(requestDID(r), op); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// apply appends op to the identity's log. Errors: *plcError.
func (d *directory) apply(did syntax.DID, op *plc.Operation) error {
	cid, err := op.CID()
	if err != nil {
		return fmt.Errorf("encode operation: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	log := d.logs[did]
	if len(log) == 0 {
		err = checkGenesis(did, op)
	} else {
		err = checkUpdate(log[len(log)-1], op)
	}
	if err != nil {
		return &plcError{http.StatusBadRequest, "Invalid operation: " + err.Error()}
	}
	d.logs[did] = append(log, logEntry{
		DID: did, Operation: op, CID: cid, CreatedAt: d.now().UTC().Format("2006-01-02T15:04:05.000Z"),
	})
	return nil
}

func checkGenesis(did syntax.DID, op *plc.Operation) error {
	if op.Type != plc.TypeOperation || op.Prev != nil {
		return errors.New("the first operation has prev null")
	}
	want, err := op.DID()
	if err != nil {
		return err
	}
	if did != want {
		return fmt.Errorf("the operation's hash makes %s, not %s", want, did)
	}
	return op.Verify(op.RotationKeys)
}

func checkUpdate(last logEntry, op *plc.Operation) error {
	if last.Operation.Type == plc.TypeTombstone {
		return errors.New("the identity has a tombstone")
	}
	if op.Prev == nil || *op.Prev != last.CID {
		return fmt.Errorf("prev is not the newest operation, %s", last.CID)
	}
	return op.Verify(last.Operation.RotationKeys)
}

// log is a copy of the identity's log, oldest first, never empty. Errors: *plcError.
func (d *directory) log(did syntax.DID) ([]logEntry, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	log := d.logs[did]
	if len(log) == 0 {
		return nil, &plcError{http.StatusNotFound, "DID not registered: " + did.String()}
	}
	return slices.Clone(log), nil
}

// last is the newest operation of an identity that is not gone. Errors: *plcError.
func (d *directory) last(did syntax.DID) (*logEntry, error) {
	log, err := d.log(did)
	if err != nil {
		return nil, err
	}
	last := log[len(log)-1]
	if last.Operation.Type == plc.TypeTombstone {
		return nil, &plcError{http.StatusGone, "DID not available: " + last.DID.String()}
	}
	return &last, nil
}

func requestDID(r *http.Request) syntax.DID { return syntax.DID(r.PathValue("did")) }

func (d *directory) getDocument(w http.ResponseWriter, r *http.Request) error {
	last, err := d.last(requestDID(r))
	if err != nil {
		return err
	}
	document, err := json.Marshal(document(last.DID, last.Operation))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/did+ld+json; charset=utf-8")
	_, _ = w.Write(document) // the client is gone: nobody to tell
	return nil
}

func (d *directory) getData(w http.ResponseWriter, r *http.Request) error {
	last, err := d.last(requestDID(r))
	if err != nil {
		return err
	}
	op := last.Operation
	xrpc.WriteJSON(w, http.StatusOK, map[string]any{
		"did": last.DID, "verificationMethods": op.VerificationMethods, "rotationKeys": op.RotationKeys,
		"alsoKnownAs": op.AlsoKnownAs, "services": op.Services,
	})
	return nil
}

func (d *directory) getLog(w http.ResponseWriter, r *http.Request) error {
	log, err := d.log(requestDID(r))
	if err != nil {
		return err
	}
	ops := make([]*plc.Operation, len(log))
	for i := range log {
		ops[i] = log[i].Operation
	}
	xrpc.WriteJSON(w, http.StatusOK, ops)
	return nil
}

func (d *directory) getLast(w http.ResponseWriter, r *http.Request) error {
	log, err := d.log(requestDID(r))
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, log[len(log)-1].Operation)
	return nil
}

func (d *directory) getAudit(w http.ResponseWriter, r *http.Request) error {
	log, err := d.log(requestDID(r))
	if err != nil {
		return err
	}
	xrpc.WriteJSON(w, http.StatusOK, log)
	return nil
}

// document is the identity's DID document as plc.directory forms it: contexts by the kinds of keys in use,
// methods and services sorted so that equal identities give equal bytes.
func document(did syntax.DID, op *plc.Operation) map[string]any {
	contexts := []string{"https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"}
	methods, services := []map[string]string{}, []map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(op.VerificationMethods)) {
		didKey := op.VerificationMethods[id]
		if context := keyContext(didKey); context != "" && !slices.Contains(contexts, context) {
			contexts = append(contexts, context)
		}
		methods = append(methods, map[string]string{
			"id": did.String() + "#" + id, "type": "Multikey", "controller": did.String(),
			"publicKeyMultibase": strings.TrimPrefix(didKey, "did:key:"),
		})
	}
	for _, id := range slices.Sorted(maps.Keys(op.Services)) {
		services = append(services, map[string]string{
			"id": "#" + id, "type": op.Services[id].Type, "serviceEndpoint": op.Services[id].Endpoint,
		})
	}
	return map[string]any{
		"@context": contexts, "id": did, "alsoKnownAs": op.AlsoKnownAs, "verificationMethod": methods, "service": services,
	}
}

func keyContext(didKey string) string {
	key, err := atcrypto.ParsePublicDIDKey(didKey)
	if err != nil {
		return ""
	}
	switch key.(type) {
	case *atcrypto.PublicKeyK256:
		return "https://w3id.org/security/suites/secp256k1-2019/v1"
	case *atcrypto.PublicKeyP256:
		return "https://w3id.org/security/suites/ecdsa-2019/v1"
	}
	return ""
}
