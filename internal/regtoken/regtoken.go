// Package regtoken makes and checks the registry's own bearer tokens, and reads the scopes that clients ask
// for.
//
// It owns the token's form and its life, and refuses to own who may have which access: that is decided by
// whoever calls Sign.
//
// Source: https://distribution.github.io/distribution/spec/auth/token/
package regtoken

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
	lru "github.com/hashicorp/golang-lru/v2"
)

// ErrInvalid says that a token is not ours, or not valid (any more). The cause is wrapped, for the log.
var ErrInvalid = errors.New("the registry token is not valid")

// tokenType is the header's typ. No other kind of JWT has it, so that none can pass for a registry token.
const tokenType = "atcr-registry+jwt"

const (
	// maxTokenBytes is above what Sign can make of MaxScopes names of full length.
	maxTokenBytes = 16 << 10
	// verifiedTokens bounds the memory for tokens whose signature was checked: a few KiB each at most.
	verifiedTokens = 4096
	// clockLeeway is between processes that share a key.
	clockLeeway = 5 * time.Second
)

// Claims are what a token says.
type Claims struct {
	Subject string // the person's DID; "" is nobody
	Session string // the session that acts at their PDS; "" for nobody
	Access  []Access
	Expires time.Time
}

// Allows tells whether the token grants action on the repository name.
func (c *Claims) Allows(name, action string) bool {
	for _, a := range c.Access {
		if a.Name == name && a.allows(action) {
			return true
		}
	}
	return false
}

// Names tells whether the token says anything of the repository name.
func (c *Claims) Names(name string) bool {
	for _, a := range c.Access {
		if a.Name == name {
			return true
		}
	}
	return false
}

// Config is what an Issuer needs.
type Config struct {
	// Secret is what the signing key is derived from; processes with the same one accept each other's tokens.
	Secret []byte
	// Accepted are secrets before or after it, whose tokens are good too: so a key is replaced without a break.
	Accepted [][]byte
	Issuer   string
	Audience string
	Lifetime time.Duration
	Now      func() time.Time // default time.Now
}

// Issuer signs tokens and checks them. Safe for concurrent use.
type Issuer struct {
	config   Config
	private  ed25519.PrivateKey
	public   ed25519.PublicKey
	keys     jwt.VerificationKeySet // never from a token: jwk, jku, x5u and kid of its header are not read
	parser   *jwt.Parser
	verified *lru.Cache[[sha256.Size]byte, *Claims]
}

func derive(secret []byte) (ed25519.PrivateKey, error) {
	if len(secret) < 32 {
		return nil, errors.New("regtoken: the secret is shorter than 32 bytes")
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "atcr registry token, ed25519", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("regtoken: derive key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// New derives the Ed25519 keys from c.Secret and c.Accepted, which must have at least 32 bytes each.
func New(c Config) (*Issuer, error) {
	private, err := derive(c.Secret)
	if err != nil {
		return nil, err
	}
	keys := []jwt.VerificationKey{private.Public()}
	for _, secret := range c.Accepted {
		other, err := derive(secret)
		if err != nil {
			return nil, err
		}
		keys = append(keys, other.Public())
	}
	if c.Issuer == "" || c.Audience == "" || c.Lifetime <= 0 {
		return nil, errors.New("regtoken: issuer, audience and lifetime are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	verified, err := lru.New[[sha256.Size]byte, *Claims](verifiedTokens)
	if err != nil {
		return nil, fmt.Errorf("regtoken: %w", err)
	}
	return &Issuer{
		config: c, private: private, public: private.Public().(ed25519.PublicKey), keys: jwt.VerificationKeySet{Keys: keys}, verified: verified,
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithIssuer(c.Issuer), jwt.WithAudience(c.Audience),
			jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(clockLeeway), jwt.WithTimeFunc(c.Now), jwt.WithStrictDecoding(),
		),
	}, nil
}

// wireClaims is a token's payload.
type wireClaims struct {
	jwt.RegisteredClaims
	Session string   `json:"sid,omitempty"`
	Access  []Access `json:"access"`
}

// Sign makes a token for Subject, Session and Access that expires after the issuer's lifetime.
func (i *Issuer) Sign(c Claims) (token string, issued, expires time.Time, err error) {
	issued = i.config.Now().Truncate(time.Second)
	expires = issued.Add(i.config.Lifetime)
	if c.Access == nil {
		c.Access = []Access{}
	}
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, wireClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: i.config.Issuer, Audience: jwt.ClaimStrings{i.config.Audience}, Subject: c.Subject,
			IssuedAt: jwt.NewNumericDate(issued), ExpiresAt: jwt.NewNumericDate(expires),
		},
		Session: c.Session, Access: c.Access,
	})
	t.Header["typ"] = tokenType
	token, err = t.SignedString(i.private)
	if err != nil {
		return "", issued, expires, fmt.Errorf("sign registry token: %w", err)
	}
	return token, issued, expires, nil
}

// Verify checks a token's signature, type, issuer, audience and time. A token that was found good is
// remembered until it expires: the second look costs one hash. The result is shared: do not change it.
//
// Errors: ErrInvalid.
func (i *Issuer) Verify(token string) (*Claims, error) {
	if len(token) > maxTokenBytes {
		return nil, fmt.Errorf("%w: %d bytes long", ErrInvalid, len(token))
	}
	key := sha256.Sum256([]byte(token))
	if c, ok := i.verified.Get(key); ok {
		if i.config.Now().Before(c.Expires) {
			return c, nil
		}
		i.verified.Remove(key)
	}
	var wire wireClaims
	parsed, err := i.parser.ParseWithClaims(token, &wire, func(t *jwt.Token) (any, error) {
		if t.Header["typ"] != tokenType {
			return nil, errors.New("the token is of another type")
		}
		return i.keys, nil
	})
	if err != nil || !parsed.Valid {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	c := &Claims{Subject: wire.Subject, Session: wire.Session, Access: wire.Access, Expires: wire.ExpiresAt.Time}
	i.verified.Add(key, c)
	return c, nil
}
