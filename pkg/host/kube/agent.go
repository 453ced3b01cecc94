package kube

import (
	"context"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Hostd is the part of the node's hostd that the Agent calls. Embedding gives it more than five methods: one socket serves
// what the objects ask for, and what they have to say of attachments.
type Hostd interface {
	host.Disks
	host.Datastores
	Attachments(ctx context.Context) ([]host.Attachment, error)
	// Unclaim is host.Claims': it releases, after a check, what this host held before its machine's last start.
	Unclaim(ctx context.Context, id, node string) error
}

// AgentParams are what an Agent needs. Zero durations and counts mean the defaults.
type AgentParams struct {
	API   client.WithWatch
	Node  string // this node's name, as in the Node object and in spec.host
	Hostd Hostd
	Log   *slog.Logger

	DatastoreEvery time.Duration // how often the datastores are looked at: 10 s
	Resync         time.Duration // how often every disk is looked at again (used space, damage): 60 s
	Workers        int           // disks worked on at once: 4
}

// Agent does on one node what objects ask for.
type Agent struct {
	p   AgentParams
	api client.WithWatch
	log *slog.Logger

	*recorder // the node service's Recorder: Attached, Detached, Event

	mu     sync.Mutex
	stores map[string]storeState // by datastore, as of the last look; nil before the first
	usage  map[string]time.Time  // by disk: when its use of space was written
}

// storeState is this host's view of a datastore; err says why it cannot be used.
type storeState struct {
	err     error
	written v1alpha1.DatastoreHostStatus
	at      time.Time // when written was, by this process's monotonic clock
}

// NewAgent makes an Agent; it works from Run on, and takes notices (Attached, Detached, Event) before.
func NewAgent(p AgentParams) *Agent {
	if p.DatastoreEvery == 0 {
		p.DatastoreEvery = 10 * time.Second
	}
	if p.Resync == 0 {
		p.Resync = time.Minute
	}
	if p.Workers == 0 {
		p.Workers = 4
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{p: p, api: p.API, log: p.Log, recorder: newRecorder(p)}
}

// Run works until ctx ends, and returns after everything it started has ended.
func (a *Agent) Run(ctx context.Context) error {
	queue := workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second),
		workqueue.TypedRateLimitingQueueConfig[string]{Name: "virtualdisks"})
	informer := a.informer()
	enqueue := func(o any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil {
			queue.Add(key)
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, o any) { enqueue(o) },
	}); err != nil {
		queue.ShutDown()
		return fault.New(fault.Internal, "", "watch disks: %w", err)
	}

	var wg sync.WaitGroup
	wg.Go(func() { informer.RunWithContext(ctx) })
	wg.Go(func() { a.watchDatastores(ctx) })
	wg.Go(func() { a.recorder.run(ctx) })
	for range a.p.Workers {
		wg.Go(func() { a.work(ctx, queue) })
	}
	<-ctx.Done()
	queue.ShutDown()
	wg.Wait()
	return nil
}

// informer tells of the disks addressed to this node; the API server selects them.
func (a *Agent) informer() cache.SharedIndexInformer {
	mine := fields.OneTermEqualSelector("spec.host", a.p.Node)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := &v1alpha1.VirtualDiskList{}
			err := a.api.List(ctx, list, &client.ListOptions{FieldSelector: mine, Raw: &o})
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return a.api.Watch(ctx, &v1alpha1.VirtualDiskList{}, &client.ListOptions{FieldSelector: mine, Raw: &o})
		},
	}
	return cache.NewSharedIndexInformer(lw, &v1alpha1.VirtualDisk{}, a.p.Resync, cache.Indexers{})
}

func (a *Agent) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string]) {
	for {
		id, stop := queue.Get()
		if stop {
			return
		}
		if err := a.reconcile(ctx, id); err != nil && ctx.Err() == nil {
			a.log.Info("disk is not as wanted; trying again", "disk", id, "error", err)
			queue.AddRateLimited(id)
		} else {
			queue.Forget(id)
		}
		queue.Done(id)
	}
}
