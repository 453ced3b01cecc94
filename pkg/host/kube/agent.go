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
	host.Snapshots
	host.Datastores
	Attachments(ctx context.Context) ([]host.Attachment, error)
	// Unclaim is host.Claims': it releases, after a check, what this host held before its machine's last start.
	Unclaim(ctx context.Context, id, node string) error
}

// Freezer stops the file systems of disks that are staged on this node.
type Freezer interface {
	// Freeze stops the disk's file system until then, or until thaw is called; by then it goes on, whatever becomes of this
	// process. The whole call, and what it stops, ends at the deadline. Kinds: NotFound (there is none on this node).
	Freeze(ctx context.Context, id string, deadline time.Time) (thaw func(context.Context) error, err error)
}

// AgentParams are what an Agent needs. Zero durations and counts mean the defaults.
type AgentParams struct {
	API   client.WithWatch
	Node  string // this node's name, as in the Node object and in spec.host
	Hostd Hostd
	// Freezer may be nil: then every snapshot of an attached disk is what a power cut would leave.
	Freezer Freezer
	Log     *slog.Logger

	DatastoreEvery time.Duration // how often the datastores are looked at: 10 s
	Resync         time.Duration // how often every disk is looked at again (used space, damage): 60 s
	ProgressEvery  time.Duration // how often a running consolidation is looked at: 5 s
	Workers        int           // objects of one kind worked on at once: 4
}

// Agent does on one node what objects ask for.
type Agent struct {
	p   AgentParams
	api client.WithWatch
	log *slog.Logger

	disks, snapshots *loop

	*recorder // the node service's Recorder: Attached, Detached, Event

	mu     sync.Mutex
	stores map[string]storeState // by datastore, as of the last look; nil before the first
	usage  map[string]time.Time  // by disk: when its use of space was written
	freed  map[string]int64      // by disk: what hostd said last of the space that its consolidation gave back
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
	if p.ProgressEvery == 0 {
		p.ProgressEvery = 5 * time.Second
	}
	if p.Workers == 0 {
		p.Workers = 4
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	a := &Agent{p: p, api: p.API, log: p.Log, recorder: newRecorder(p)}
	a.disks = a.newLoop("disk", &v1alpha1.VirtualDisk{}, &v1alpha1.VirtualDiskList{}, a.reconcile)
	a.snapshots = a.newLoop("snapshot", &v1alpha1.DiskSnapshot{}, &v1alpha1.DiskSnapshotList{}, a.reconcileSnapshot)
	return a
}

// Run works until ctx ends, and returns after everything it started has ended. It is called once.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, l := range []*loop{a.disks, a.snapshots} {
		if err := l.start(ctx, &wg, a.p.Workers); err != nil {
			return err
		}
	}
	wg.Go(func() { a.watchDatastores(ctx) })
	wg.Go(func() { a.recorder.run(ctx) })
	<-ctx.Done()
	return nil
}

// loop reconciles the objects of one kind that are addressed to this node.
type loop struct {
	noun      string
	informer  cache.SharedIndexInformer
	queue     workqueue.TypedRateLimitingInterface[string]
	reconcile func(ctx context.Context, name string) error
	log       *slog.Logger
}

// newLoop makes a loop; the API server selects its objects.
func (a *Agent) newLoop(noun string, kind client.Object, list client.ObjectList, reconcile func(context.Context, string) error) *loop {
	mine := fields.OneTermEqualSelector("spec.host", a.p.Node)
	empty := func() client.ObjectList {
		l, _ := list.DeepCopyObject().(client.ObjectList)
		return l
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l := empty()
			err := a.api.List(ctx, l, &client.ListOptions{FieldSelector: mine, Raw: &o})
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return a.api.Watch(ctx, empty(), &client.ListOptions{FieldSelector: mine, Raw: &o})
		},
	}
	return &loop{
		noun: noun, informer: cache.NewSharedIndexInformer(lw, kind, a.p.Resync, cache.Indexers{}), reconcile: reconcile, log: a.log,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second),
			workqueue.TypedRateLimitingQueueConfig[string]{Name: noun}),
	}
}

// start starts what wg waits for; it ends with ctx.
func (l *loop) start(ctx context.Context, wg *sync.WaitGroup, workers int) error {
	wg.Go(func() {
		<-ctx.Done()
		l.queue.ShutDown()
	})
	enqueue := func(o any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil {
			l.queue.Add(key)
		}
	}
	if _, err := l.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, o any) { enqueue(o) },
	}); err != nil {
		return fault.New(fault.Internal, "", "watch %ss: %w", l.noun, err)
	}
	wg.Go(func() { l.informer.RunWithContext(ctx) })
	for range workers {
		wg.Go(func() { l.work(ctx) })
	}
	return nil
}

func (l *loop) work(ctx context.Context) {
	for {
		name, stop := l.queue.Get()
		if stop {
			return
		}
		if err := l.reconcile(ctx, name); err != nil && ctx.Err() == nil {
			l.log.Info(l.noun+" is not as wanted; trying again", l.noun, name, "error", err)
			l.queue.AddRateLimited(name)
		} else {
			l.queue.Forget(name)
		}
		l.queue.Done(name)
	}
}
