"""Programs whose outcome PyTorch's documentation tells; each is a function of a side.

Numbers in the names of groups are those of the behaviours in PyTorch's notes on autograd.
"""

CASES = {}


def case(fun):
    CASES[fun.__name__] = fun
    return fun


def leaf(t, *data):
    return t.tensor(list(data) or [1.0, 2.0, 3.0], requires_grad=True)


# Core.


@case
def gradients_accumulate(t):
    w = leaf(t)
    for _ in range(3):
        (w * w).sum().backward()
    return w.grad


@case
def gradients_accumulate_into_the_same_tensor(t):
    w = leaf(t)
    (w * w).sum().backward()
    grad = w.grad
    (w * w).sum().backward()
    return [grad is w.grad, grad]


@case
def zero_grad_gives_none(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    (w * w).sum().backward()
    opt.zero_grad()
    return w.grad


@case
def zero_grad_to_zero(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    (w * w).sum().backward()
    opt.zero_grad(set_to_none=False)
    return w.grad


@case
def a_second_backward_fails(t):
    w = leaf(t)
    loss = (w * w).sum()
    loss.backward()
    loss.backward()


@case
def a_second_backward_with_retain_graph(t):
    w = leaf(t)
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return w.grad


@case
def a_third_backward_fails(t):
    w = leaf(t)
    loss = w.exp().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    loss.backward()


@case
def a_graph_that_saved_nothing_may_pass_again(t):
    w = leaf(t)
    loss = (w + w).sum()
    loss.backward()
    loss.backward()
    return w.grad


@case
def two_losses_share_a_part_that_was_freed(t):
    w = leaf(t)
    y = w.exp()
    (y * y).sum().backward()
    (y * 3).sum().backward()


@case
def two_losses_share_a_part_that_was_kept(t):
    w = leaf(t)
    y = w.exp()
    (y * y).sum().backward(retain_graph=True)
    (y * 3).sum().backward()
    return w.grad


@case
def no_scalar(t):
    (leaf(t) * 2).backward()


@case
def one_element_of_any_rank(t):
    w = t.tensor([[2.0]], requires_grad=True)
    (w * w).backward()
    return w.grad


@case
def gradient_of_a_vector(t):
    w = leaf(t)
    (w * w).backward(gradient=t.tensor([1.0, 0.5, 0.0]))
    return w.grad


@case
def gradient_of_a_wrong_shape(t):
    (leaf(t) * 2).backward(gradient=t.tensor([1.0, 1.0]))


@case
def gradient_that_is_no_tensor(t):
    (leaf(t) * 2).backward(gradient=[1.0, 1.0, 1.0])


@case
def gradient_for_a_scalar(t):
    w = leaf(t)
    (w * w).sum().backward(t.tensor(3.0))
    return w.grad


@case
def no_history(t):
    t.tensor([1.0]).sum().backward()


@case
def a_leaf_itself(t):
    w = t.tensor(2.0, requires_grad=True)
    w.backward()
    return w.grad


@case
def integers_require_no_grad(t):
    t.tensor([1, 2], requires_grad=True)


@case
def integers_require_no_grad_later(t):
    t.tensor([1, 2]).requires_grad_()


@case
def integers_beside_floats(t):
    w = leaf(t)
    (w * t.tensor([1, 2, 3])).sum().backward()
    return w.grad


@case
def inputs_restrict(t):
    w, v = leaf(t), leaf(t)
    (w * v).sum().backward(inputs=[w])
    return [w.grad, v.grad]


@case
def inputs_one_tensor(t):
    w, v = leaf(t), leaf(t)
    (w * v).sum().backward(inputs=v)
    return [w.grad, v.grad]


@case
def inputs_empty(t):
    leaf(t).sum().backward(inputs=[])


@case
def inputs_may_be_computed(t):
    w = leaf(t)
    y = w * 2
    y.retain_grad()
    (y * y).sum().backward(inputs=[y])
    return [y.grad, w.grad]


@case
def create_graph(t):
    w = leaf(t)
    (g,) = t.autograd.grad((w**3).sum(), w, create_graph=True)
    (h,) = t.autograd.grad(g.sum(), w, create_graph=True)
    (k,) = t.autograd.grad(h.sum(), w)
    return [g, h, k, g.requires_grad, k.requires_grad]


@case
def create_graph_through_outputs_that_are_saved(t):
    w = leaf(t, 0.3, -0.7)
    (g,) = t.autograd.grad((w.tanh() * w.exp()).sum(), w, create_graph=True)
    (h,) = t.autograd.grad((g * g).sum(), w)
    return [g, h]


@case
def create_graph_and_backward(t):
    w = leaf(t)
    (w**3).sum().backward(create_graph=True)
    g = w.grad
    w.grad = None
    (g * g).sum().backward()
    return [g, w.grad]


@case
def a_gradient_penalty(t):
    w = t.tensor([[0.5, -0.2], [0.1, 0.3]], requires_grad=True)
    x = t.tensor([[1.0, 2.0]], requires_grad=True)
    y = (x @ w).tanh().sum()
    (g,) = t.autograd.grad(y, x, create_graph=True)
    ((g * g).sum() + y).backward()
    return [w.grad, x.grad]


@case
def grad_refuses_what_is_unused(t):
    w, v = leaf(t), leaf(t)
    t.autograd.grad((w * 2).sum(), [w, v])


@case
def grad_allows_what_is_unused(t):
    w, v = leaf(t), leaf(t)
    return t.autograd.grad((w * 2).sum(), [w, v], allow_unused=True)


@case
def grad_materializes(t):
    w, v = leaf(t), leaf(t)
    return t.autograd.grad((w * 2).sum(), [w, v], materialize_grads=True)


@case
def grad_touches_no_grad(t):
    w = leaf(t)
    t.autograd.grad((w * 2).sum(), w)
    return w.grad


@case
def grad_by_what_requires_none(t):
    w, v = leaf(t), t.tensor([1.0, 2.0, 3.0])
    t.autograd.grad((w * v).sum(), v)


@case
def grad_by_a_computed_tensor(t):
    w = leaf(t)
    y = w * 2
    return t.autograd.grad((y * y).sum(), y)


@case
def grad_by_both(t):
    w = leaf(t)
    y = w * 2
    return t.autograd.grad((y * y * w).sum(), [y, w])


@case
def grad_of_several_outputs(t):
    w = leaf(t)
    return t.autograd.grad([(w * 2).sum(), (w * w).sum()], w)


@case
def grad_with_cotangents(t):
    w = leaf(t)
    return t.autograd.grad([w * 2, w * w], w, [t.tensor([1.0, 0, 0]), t.tensor([0.0, 1, 1])])


@case
def grad_batched(t):
    w = leaf(t)
    cts = t.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    return t.autograd.grad(w * w, w, cts, is_grads_batched=True)


@case
def grad_frees(t):
    w = leaf(t)
    loss = (w * w).sum()
    t.autograd.grad(loss, w)
    t.autograd.grad(loss, w)


@case
def wrong_number_of_cotangents(t):
    w = leaf(t)
    t.autograd.backward([w * 2, w * 3], [t.tensor([1.0, 1, 1])])


@case
def backward_of_several(t):
    w = leaf(t)
    t.autograd.backward([(w * 2).sum(), (w * w).sum()])
    return w.grad


@case
def leaves_and_others(t):
    w = leaf(t)
    y = w * 2
    d = y.detach()
    return [w.is_leaf, y.is_leaf, d.is_leaf, y.requires_grad, d.requires_grad, w.grad_fn is None]


@case
def retain_grad(t):
    w = leaf(t)
    y = w * 2
    y.retain_grad()
    (y * y).sum().backward()
    return [y.grad, w.grad, y.retains_grad]


@case
def retain_grad_of_a_leaf_changes_nothing(t):
    w = leaf(t)
    w.retain_grad()
    (w * w).sum().backward()
    return [w.grad, w.retains_grad]


@case
def retain_grad_without_grad(t):
    t.tensor([1.0]).retain_grad()


@case
def requires_grad_of_a_computed_one(t):
    y = leaf(t) * 2
    y.requires_grad = False


@case
def grad_of_a_wrong_shape(t):
    w = leaf(t)
    w.grad = t.tensor([1.0])


@case
def grad_of_a_wrong_type(t):
    w = leaf(t)
    w.grad = 3.0


@case
def diamonds(t):
    w = leaf(t)
    a = w.exp()
    b, c = a * 2, a.sin()
    (b * c + a).sum().backward()
    return w.grad


@case
def used_many_times(t):
    w = leaf(t)
    y = w
    for _ in range(5):
        y = y * w
    y.sum().backward()
    return w.grad


@case
def python_decides(t):
    w = leaf(t, 0.5)
    y = w
    while float(y.sum()) < 10:
        y = y * 2 + w
    y.sum().backward()
    return [y, w.grad]


@case
def no_gradient_through_integers(t):
    w = leaf(t, 1.5, 0.5)
    y = (w > 1).float() * w
    y.sum().backward()
    return w.grad


@case
def ties_of_maximum(t):
    a, b = leaf(t, 1.0, 2.0), leaf(t, 1.0, 0.0)
    t.maximum(a, b).sum().backward()
    return [a.grad, b.grad]


@case
def relu_at_zero(t):
    w = leaf(t, 0.0, 1.0, -1.0)
    t.F.relu(w).sum().backward()
    return w.grad


@case
def abs_at_zero(t):
    w = leaf(t, 0.0, 1.0, -1.0)
    w.abs().sum().backward()
    return w.grad


@case
def broadcasting(t):
    a, b = t.tensor([[1.0], [2.0]], requires_grad=True), leaf(t)
    (a * b).sum().backward()
    return [a.grad, b.grad]


@case
def numbers_on_the_left(t):
    w = leaf(t)
    (2 - 3 / w + 2 * w - w / 4).sum().backward()
    return w.grad


@case
def numpy_of_what_requires_grad(t):
    leaf(t).numpy()


@case
def numpy_under_no_grad(t):
    with t.no_grad():
        return (leaf(t) * 2).numpy()


# In place.


@case
def a_saved_input_is_changed(t):
    w = leaf(t)
    y = w * 2
    z = y * y
    y.add_(1)
    z.sum().backward()


@case
def a_saved_output_is_changed(t):
    y = leaf(t).exp()
    y.add_(1)
    y.sum().backward()


@case
def what_was_not_saved_may_change(t):
    w = leaf(t)
    y = w * 2
    z = y + 1
    y.mul_(5)
    z.sum().backward()
    return w.grad


@case
def in_place_on_a_leaf(t):
    leaf(t).add_(1)


@case
def in_place_on_a_view_of_a_leaf(t):
    leaf(t)[0].mul_(2)


@case
def in_place_on_a_leaf_under_no_grad(t):
    w = leaf(t)
    with t.no_grad():
        w.add_(1)
    (w * w).sum().backward()
    return [w, w.grad, w.is_leaf]


@case
def in_place_on_a_leaf_that_was_saved(t):
    w = leaf(t)
    loss = (w * w).sum()
    with t.no_grad():
        w.add_(1)
    loss.backward()


@case
def in_place_on_a_computed_one(t):
    w = leaf(t)
    y = w * 2
    y.mul_(3)
    y.sum().backward()
    return [y, w.grad]


@case
def in_place_makes_a_constant_require_grad(t):
    w, y = leaf(t), t.tensor([1.0, 1.0, 1.0])
    y.mul_(w)
    y.sum().backward()
    return [w.grad, y.requires_grad, y.is_leaf]


@case
def in_place_saves_its_output(t):
    w = leaf(t)
    y = w * 1
    y.exp_()
    y.sum().backward()
    return [y, w.grad]


@case
def operators_in_place(t):
    w = leaf(t)
    y = w * 1
    y += 2
    y *= 3
    y -= w
    y /= 2
    y.sum().backward()
    return [y, w.grad]


@case
def assignment_of_elements(t):
    w = leaf(t)
    y = w * 2
    y[0] = 5.0
    y.sum().backward()
    return [y, w.grad]


@case
def assignment_of_a_tensor_to_elements(t):
    w, v = leaf(t), t.tensor(7.0, requires_grad=True)
    y = w * 2
    y[1] = v * 3
    (y * y).sum().backward()
    return [y, w.grad, v.grad]


@case
def assignment_to_a_leaf(t):
    w = leaf(t)
    w[0] = 1.0


@case
def a_view_changes_its_base(t):
    w = leaf(t)
    y = w * 2
    v = y[1:]
    v.mul_(10)
    y.sum().backward()
    return [y, v, w.grad]


@case
def a_base_changes_its_view(t):
    w = leaf(t)
    y = w * 2
    v = y[1:]
    y.mul_(10)
    v.sum().backward()
    return [v, w.grad]


@case
def a_view_of_a_view(t):
    w = t.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = w * 1
    v = y.reshape(4)[1:3]
    v.fill_(0.0)
    (y * y).sum().backward()
    return [y, w.grad]


@case
def a_transposed_view(t):
    w = t.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = w * 1
    y.T[0].mul_(3)
    (y * y).sum().backward()
    return [y, w.grad]


@case
def detach_shares_storage(t):
    w = leaf(t)
    d = w.detach()
    with t.no_grad():
        d.add_(1)
    return [w, d]


@case
def a_change_of_the_detached_is_seen(t):
    w = leaf(t)
    y = w.exp()
    y.detach().add_(1)
    y.sum().backward()


@case
def data_shares_values(t):
    w = leaf(t)
    w.data = t.tensor([5.0, 6.0, 7.0])
    (w * w).sum().backward()
    return [w, w.grad]


@case
def versions_count(t):
    x = t.tensor([1.0, 2.0])
    found = [x._version]
    x.add_(1)
    found.append(x._version)
    x[0] = 3.0
    found.append(x.detach()._version)
    return found


@case
def a_wrong_shape_in_place(t):
    x = t.tensor([1.0, 2.0])
    x.add_(t.tensor([[1.0, 2.0], [3.0, 4.0]]))


@case
def a_float_into_integers(t):
    x = t.tensor([1, 2])
    x.add_(0.5)


@case
def copy_casts(t):
    w = leaf(t)
    y = t.tensor([0.0, 0.0, 0.0])
    y.copy_(w * 2)
    y.sum().backward()
    return [y, w.grad]


@case
def zero_keeps_no_history(t):
    w = leaf(t)
    y = w * 2
    y.zero_()
    y = y + w
    y.sum().backward()
    return w.grad


# Modes.


@case
def no_grad_records_nothing(t):
    with t.no_grad():
        y = leaf(t) * 2
    return [y.requires_grad, t.is_grad_enabled()]


@case
def no_grad_results_are_constants(t):
    w = leaf(t)
    with t.no_grad():
        y = w * 2
    (y * w).sum().backward()
    return w.grad


@case
def enable_grad_nests(t):
    w = leaf(t)
    with t.no_grad():
        with t.enable_grad():
            y = w * 2
        z = w * 2
    return [y.requires_grad, z.requires_grad]


@case
def no_grad_decorates(t):
    @t.no_grad()
    def double(x):
        return x * 2

    return double(leaf(t)).requires_grad


@case
def set_grad_enabled(t):
    w = leaf(t)
    with t.set_grad_enabled(False):
        a = (w * 2).requires_grad
    with t.set_grad_enabled(True):
        b = (w * 2).requires_grad
    return [a, b, t.is_grad_enabled()]


@case
def modes_are_put_back_after_an_error(t):
    try:
        with t.no_grad():
            raise KeyError("stop")
    except KeyError:
        pass
    return t.is_grad_enabled()


@case
def inference_results_cannot_be_saved(t):
    w = leaf(t)
    with t.inference_mode():
        y = t.tensor([1.0, 2.0, 3.0]) * 2
    return (w * y).sum()


@case
def inference_results_may_be_read(t):
    with t.inference_mode():
        y = leaf(t) * 2
    return [y.requires_grad, y + 1]


@case
def leaves_made_under_no_grad(t):
    with t.no_grad():
        w = leaf(t)
    (w * w).sum().backward()
    return w.grad


# Hooks.


@case
def a_hook_changes_a_gradient(t):
    w = leaf(t)
    w.register_hook(lambda g: g * 10)
    (w * w).sum().backward()
    return w.grad


@case
def hooks_run_in_their_order(t):
    w = leaf(t)
    w.register_hook(lambda g: g + 1)
    w.register_hook(lambda g: g * 10)
    (w * w).sum().backward()
    return w.grad


@case
def a_hook_on_a_computed_tensor(t):
    w = leaf(t)
    y = w * 2
    seen = []
    y.register_hook(lambda g: seen.append(g) or g * 3)
    (y * y).sum().backward()
    return [seen, w.grad]


@case
def a_hook_is_removed(t):
    w = leaf(t)
    handle = w.register_hook(lambda g: g * 10)
    handle.remove()
    (w * w).sum().backward()
    return w.grad


@case
def a_hook_where_nothing_is_recorded(t):
    t.tensor([1.0]).register_hook(lambda g: g)


@case
def a_hook_sees_the_whole_sum(t):
    w = leaf(t)
    seen = []
    w.register_hook(lambda g: seen.append(g.detach()))
    ((w * 2).sum() + (w * 3).sum()).backward()
    return seen


@case
def post_accumulate(t):
    w = leaf(t)
    seen = []
    w.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    (w * w).sum().backward()
    (w * w).sum().backward()
    return seen


@case
def post_accumulate_wants_a_leaf(t):
    (leaf(t) * 2).register_post_accumulate_grad_hook(lambda p: None)


@case
def the_order_of_hooks(t):
    w = leaf(t)
    y = w * 2
    order = []

    def told(name):
        return lambda *a: order.append(name)

    y.register_hook(told("tensor"))
    y.grad_fn.register_prehook(told("before"))
    y.grad_fn.register_hook(told("after"))
    w.register_hook(told("leaf"))
    w.register_post_accumulate_grad_hook(told("accumulated"))
    (y * y).sum().backward()
    return order


@case
def hooks_of_a_node_change_gradients(t):
    w = leaf(t)
    y = w * 2
    y.grad_fn.register_hook(lambda gs, outs: (gs[0] * 5, *gs[1:]))
    (y * y).sum().backward()
    return w.grad


@case
def prehooks_of_a_node_change_gradients(t):
    w = leaf(t)
    y = w * 2
    y.grad_fn.register_prehook(lambda gs: (gs[0] * 5,))
    (y * y).sum().backward()
    return w.grad


@case
def a_hook_stays_with_the_old_node(t):
    w = leaf(t)
    y = w * 2
    seen = []
    y.register_hook(lambda g: seen.append(g.clone()))
    y.mul_(10)
    y.sum().backward()
    return [seen, w.grad]


@case
def retained_after_hooks(t):
    w = leaf(t)
    y = w * 2
    y.retain_grad()
    y.register_hook(lambda g: g * 10)
    (y * y).sum().backward()
    return [y.grad, w.grad]


@case
def hooks_record_nothing(t):
    w = leaf(t)
    seen = []
    (w * 1).sum()
    w.register_hook(lambda g: seen.append((g * 2).requires_grad))
    (w * w).sum().backward()
    return seen


@case
def hooks_with_create_graph(t):
    w = leaf(t)
    w.register_hook(lambda g: g * w)
    (g,) = t.autograd.grad((w * w).sum(), w, create_graph=True)
    (h,) = t.autograd.grad(g.sum(), w)
    return [g, h]


@case
def packed(t):
    packs, unpacks = [], []

    def pack(x):
        packs.append(x.detach().clone())
        return x.detach() * 2

    def unpack(x):
        unpacks.append(1)
        return x / 2

    w = leaf(t)
    with t.saved_tensors_hooks(pack, unpack):
        y = w.exp()
    y.sum().backward()
    return [w.grad, len(packs), len(unpacks)]


# Functions.


def exponential(t):
    class Exp(t.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, ct):
            (y,) = ctx.saved_tensors
            return ct * y

    return Exp


@case
def function_first_order(t):
    w = leaf(t)
    exponential(t).apply(w * 2).sum().backward()
    return w.grad


@case
def function_second_order(t):
    w = leaf(t)
    (g,) = t.autograd.grad(exponential(t).apply(w * 2).sum(), w, create_graph=True)
    (h,) = t.autograd.grad(g.sum(), w)
    return [g, h]


@case
def function_backward_twice(t):
    y = exponential(t).apply(leaf(t)).sum()
    y.backward()
    y.backward()


@case
def function_saved_is_changed(t):
    w = leaf(t)
    x = w * 1

    class Square(t.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, ct):
            (x,) = ctx.saved_tensors
            return 2 * x * ct

    y = Square.apply(x)
    x.add_(1)
    y.sum().backward()


@case
def function_wrong_number(t):
    class Wrong(t.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * y

        @staticmethod
        def backward(ctx, ct):
            return ct

    Wrong.apply(leaf(t), leaf(t)).sum().backward()


@case
def function_extra_none(t):
    class More(t.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, ct):
            return ct * 2, None, None

    w = leaf(t)
    More.apply(w).sum().backward()
    return w.grad


@case
def function_needs(t):
    seen = []

    class Product(t.Function):
        @staticmethod
        def forward(ctx, x, y, k):
            ctx.save_for_backward(x, y)
            ctx.k = k
            seen.append(list(ctx.needs_input_grad))
            return x * y * k

        @staticmethod
        def backward(ctx, ct):
            x, y = ctx.saved_tensors
            return ct * y * ctx.k, None, None

    w = leaf(t)
    Product.apply(w, t.tensor([2.0, 2.0, 2.0]), 3).sum().backward()
    return [seen, w.grad]


@case
def function_several_outputs(t):
    class Both(t.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2, x * 3

        @staticmethod
        def backward(ctx, a, b):
            return a * 2 + b * 3

    w = leaf(t)
    a, b = Both.apply(w)
    (a * a + b).sum().backward()
    return w.grad


@case
def function_materializes(t):
    seen = []

    class Both(t.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2, x * 3

        @staticmethod
        def backward(ctx, a, b):
            seen.append(b is None)
            return a * 2 + b * 3

    w = leaf(t)
    Both.apply(w)[0].sum().backward()
    return [seen, w.grad]


@case
def function_does_not_materialize(t):
    seen = []

    class Both(t.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x * 2, x * 3

        @staticmethod
        def backward(ctx, a, b):
            seen.append(b is None)
            return a * 2

    w = leaf(t)
    Both.apply(w)[0].sum().backward()
    return [seen, w.grad]


@case
def function_non_differentiable(t):
    class Sorted(t.Function):
        @staticmethod
        def forward(ctx, x):
            sign = (x > 2).float()
            ctx.mark_non_differentiable(sign)
            return x * 2, sign

        @staticmethod
        def backward(ctx, ct, _):
            return ct * 2

    w = leaf(t)
    y, sign = Sorted.apply(w)
    (y * sign).sum().backward()
    return [sign.requires_grad, w.grad]


@case
def function_dirty(t):
    class Double(t.Function):
        @staticmethod
        def forward(ctx, x):
            x.mul_(2)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, ct):
            return ct * 2

    w = leaf(t)
    x = w * 1
    y = Double.apply(x)
    y.sum().backward()
    return [x is y, y, w.grad]


@case
def function_setup_context(t):
    class Scale(t.Function):
        @staticmethod
        def forward(x, k):
            return x * k

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.k = inputs[1]

        @staticmethod
        def backward(ctx, ct):
            return ct * ctx.k, None

    w = leaf(t)
    Scale.apply(w, 4.0).sum().backward()
    return w.grad


@case
def function_once(t):
    class Once(t.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @t.once_differentiable
        def backward(ctx, ct):
            (x,) = ctx.saved_tensors
            return ct * 2 * x

    w = leaf(t)
    (g,) = t.autograd.grad(Once.apply(w).sum(), w, create_graph=True)
    g.sum().backward()


@case
def function_once_first_order(t):
    class Once(t.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @t.once_differentiable
        def backward(ctx, ct):
            (x,) = ctx.saved_tensors
            return ct * 2 * x

    w = leaf(t)
    Once.apply(w).sum().backward()
    return w.grad


@case
def function_records_nothing_within(t):
    seen = []

    class Look(t.Function):
        @staticmethod
        def forward(ctx, x):
            y = x * 2
            seen.append(y.requires_grad)
            return y

        @staticmethod
        def backward(ctx, ct):
            return ct * 2

    Look.apply(leaf(t))
    return seen


@case
def a_surrogate_gradient(t):
    class Spike(t.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x > 0).float()

        @staticmethod
        def backward(ctx, ct):
            (x,) = ctx.saved_tensors
            return ct / (1 + 10 * x.abs()) ** 2

    w = leaf(t, -0.1, 0.2, 3.0)
    Spike.apply(w).sum().backward()
    return w.grad


# Checkpoints.


@case
def checkpoint_values(t):
    w, v = leaf(t), leaf(t)
    y = t.checkpoint(lambda x: (x * v).tanh().exp(), w * 0.2)
    y.sum().backward()
    return [y, w.grad, v.grad]


@case
def checkpoint_runs_twice(t):
    runs = []

    def block(x):
        runs.append(1)
        return x.exp() * x

    w = leaf(t)
    y = t.checkpoint(block, w)
    before = len(runs)
    y.sum().backward()
    return [before, len(runs), w.grad]


@case
def checkpoint_nested_structures(t):
    w = leaf(t)
    y = t.checkpoint(lambda d, scale=1.0: {"out": d["x"].exp() * scale}, {"x": w}, scale=2.0)
    y["out"].sum().backward()
    return w.grad


@case
def checkpoint_and_grad(t):
    w = leaf(t)
    return t.autograd.grad(t.checkpoint(lambda x: x.exp() * x, w).sum(), w)


@case
def checkpoint_in_checkpoint(t):
    w = leaf(t)

    def outer(x):
        return t.checkpoint(lambda z: z.exp() * z, x.sin()) * x

    t.checkpoint(outer, w).sum().backward()
    return w.grad


@case
def checkpoint_that_differs(t):
    flips = []

    def block(x):
        flips.append(1)
        return x.exp() * x if len(flips) == 1 else x.sin()

    t.checkpoint(block, leaf(t)).sum().backward()


@case
def checkpoint_keeps_the_random_numbers(t):
    t.manual_seed(0)
    w = leaf(t)
    y = t.checkpoint(lambda x: x * (t.rand(3) + 1) * x, w)
    y.sum().backward()
    return bool(abs(float((w.grad * w).sum()) - 2 * float(y.sum())) < 1e-4)


# Training.


def trained(t, make, steps=4, **options):
    w = t.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    v = t.tensor([0.1, 0.2], requires_grad=True)
    opt = make([w, v], **options)
    x = t.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, 0.1]])
    for _ in range(steps):
        opt.zero_grad()
        (((x @ w).tanh() + v) ** 2).mean().backward()
        opt.step()
    return [w, v]


OPTIMISERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "sgd_nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd_decay": ("SGD", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam_betas": ("Adam", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4}),
    "adam_decay": ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw_decay": ("AdamW", {"lr": 0.01, "weight_decay": 0.3}),
    "rmsprop": ("RMSprop", {"lr": 0.01}),
    "rmsprop_momentum": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.5}),
}
for _name, (_kind, _options) in OPTIMISERS.items():
    CASES[f"optimiser_{_name}"] = lambda t, kind=_kind, options=_options: trained(
        t, getattr(t.optim, kind), **options
    )


@case
def nothing_moves_before_step(t):
    w = leaf(t)
    t.optim.SGD([w], lr=0.1)
    (w * w).sum().backward()
    return w


@case
def parameters_without_gradients_stay(t):
    w, v = leaf(t), leaf(t)
    opt = t.optim.SGD([w, v], lr=0.1, weight_decay=0.5)
    (w * w).sum().backward()
    opt.step()
    return [w, v]


@case
def groups_of_parameters(t):
    w, v = leaf(t), leaf(t)
    opt = t.optim.SGD([{"params": [w]}, {"params": [v], "lr": 1.0}], lr=0.1)
    (w * v).sum().backward()
    opt.step()
    return [w, v]


@case
def a_rate_is_changed(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    for rate in (0.1, 0.01):
        opt.param_groups[0]["lr"] = rate
        opt.zero_grad()
        (w * w).sum().backward()
        opt.step()
    return w


@case
def a_closure(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)

    def closure():
        opt.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    return [opt.step(closure), w]


@case
def no_parameters(t):
    t.optim.SGD([], lr=0.1)


@case
def parameters_that_are_no_tensors(t):
    t.optim.SGD([1.0], lr=0.1)


@case
def parameters_that_are_computed(t):
    t.optim.SGD([leaf(t) * 2], lr=0.1)


@case
def micro_batches(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    for x in (1.0, 2.0, 3.0):
        ((w * x) ** 2).sum().div(3).backward() if hasattr(w, "div") else None
    opt.step()
    return w.shape[0]


@case
def norms_are_clipped(t):
    w, v = leaf(t), leaf(t)
    ((w * w).sum() + (v * 3).sum()).backward()
    norm = t.nn.utils.clip_grad_norm_([w, v], 1.0)
    return [norm, w.grad, v.grad]


@case
def small_norms_are_left_alone(t):
    w = leaf(t)
    (w * w).sum().backward()
    norm = t.nn.utils.clip_grad_norm_(w, 100.0)
    return [norm, w.grad]


@case
def norms_of_another_order(t):
    w = leaf(t)
    (w * w).sum().backward()
    return [t.nn.utils.clip_grad_norm_([w], 1.0, norm_type=float("inf")), w.grad]


@case
def norms_that_are_not_finite(t):
    w = leaf(t, float("inf"))
    (w * w).sum().backward()
    t.nn.utils.clip_grad_norm_([w], 1.0, error_if_nonfinite=True)


@case
def values_are_clipped(t):
    w = leaf(t)
    (w * w).sum().backward()
    t.nn.utils.clip_grad_value_([w], 3.0)
    return w.grad


@case
def scaler_scales(t):
    w = leaf(t)
    scaler = t.scaler(init_scale=8.0)
    scaler.scale((w * w).sum()).backward()
    return [w.grad, scaler.get_scale()]


@case
def scaler_steps(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    scaler = t.scaler(init_scale=8.0, growth_interval=1)
    scaler.scale((w * w).sum()).backward()
    scaler.step(opt)
    scaler.update()
    return [w, scaler.get_scale()]


@case
def scaler_skips(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    scaler = t.scaler(init_scale=8.0)
    scaler.scale((w * float("inf")).sum()).backward()
    scaler.step(opt)
    scaler.update()
    return [w, scaler.get_scale()]


@case
def scaler_unscales_to_clip(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    scaler = t.scaler(init_scale=8.0)
    scaler.scale((w * w).sum()).backward()
    scaler.unscale_(opt)
    norm = t.nn.utils.clip_grad_norm_([w], 1.0)
    scaler.step(opt)
    scaler.update()
    return [norm, w]


@case
def scaler_unscales_once(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    scaler = t.scaler()
    scaler.scale((w * w).sum()).backward()
    scaler.unscale_(opt)
    scaler.unscale_(opt)


@case
def scaler_steps_once(t):
    w = leaf(t)
    opt = t.optim.SGD([w], lr=0.1)
    scaler = t.scaler()
    scaler.scale((w * w).sum()).backward()
    scaler.step(opt)
    scaler.step(opt)


@case
def scaler_that_is_off(t):
    w = leaf(t)
    scaler = t.scaler(enabled=False)
    scaler.scale((w * w).sum()).backward()
    return [w.grad, scaler.get_scale()]


@case
def anomaly_is_an_error(t):
    w = leaf(t, 0.0)
    with t.detect_anomaly():
        (w.sqrt() * 0).sum().backward()


@case
def nan_without_anomaly_mode(t):
    w = leaf(t, 0.0)
    (w.sqrt() * 0).sum().backward()
    return w.grad


# Modules.


@case
def modules_by_name(t):
    class Two(t.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = t.nn.Linear(2, 3)
            self.b = t.nn.Sequential(t.nn.Linear(3, 3, bias=False), t.nn.ReLU())

    model = Two()
    return [
        [name for name, _ in model.named_parameters()],
        [list(p.shape) for p in model.parameters()],
        sorted(model.state_dict()),
    ]


@case
def modes_of_modules(t):
    model = t.nn.Sequential(t.nn.Dropout(0.5), t.nn.ReLU())
    model.eval()
    y = model(t.tensor([1.0, -1.0]))
    return [model.training, model[0].training, y]


@case
def states_are_loaded(t):
    model = t.nn.Linear(2, 1)
    model.load_state_dict({"weight": t.tensor([[1.0, 2.0]]), "bias": t.tensor([3.0])})
    return model(t.tensor([[1.0, 1.0]]))


@case
def convolution(t):
    model = t.nn.Conv2d(1, 1, 2)
    model.load_state_dict(
        {"weight": t.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), "bias": t.tensor([0.5])}
    )
    x = t.tensor([[[[1.0, 2.0, 0.0], [0.5, 1.0, 3.0], [2.0, 1.0, 1.0]]]], requires_grad=True)
    y = model(x)
    (y * y).sum().backward()
    return [y, x.grad, model.weight.grad, model.bias.grad]


@case
def batch_norm(t):
    model = t.nn.BatchNorm2d(2)
    x = t.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]], [[[0.0, 1.0]], [[2.0, 2.5]]]], requires_grad=True)
    y = model(x)
    (y**3).sum().backward()
    model.eval()
    return [y, x.grad, model.weight.grad, model.running_mean, model.running_var, model(x)]


@case
def layer_norm(t):
    model = t.nn.LayerNorm(3)
    x = t.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, -1.0]], requires_grad=True)
    y = model(x)
    (y**3).sum().backward()
    return [y, x.grad, model.weight.grad, model.bias.grad]


@case
def embedding(t):
    model = t.nn.Embedding(4, 2)
    with t.no_grad():
        model.weight.copy_(t.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))
    y = model(t.tensor([1, 1, 3]))
    (y * y).sum().backward()
    return [y, model.weight.grad]


@case
def cross_entropy(t):
    x = t.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]], requires_grad=True)
    loss = t.F.cross_entropy(x, t.tensor([2, 0]))
    loss.backward()
    return [loss, x.grad]


@case
def cross_entropy_of_probabilities(t):
    x = t.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]], requires_grad=True)
    loss = t.F.cross_entropy(x, t.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]), reduction="sum")
    loss.backward()
    return [loss, x.grad]


@case
def pooling(t):
    x = t.tensor([[[[1.0, 2.0, 0.0, 4.0], [0.5, 1.0, 3.0, 2.0]]]], requires_grad=True)
    y = t.F.max_pool2d(x, 2)
    z = t.F.avg_pool2d(x, 2)
    (y * y + z).sum().backward()
    return [y, z, x.grad]


# Gradients of functions, at points where they are smooth.

POINT = [[0.3, -0.7, 1.2], [0.9, 0.1, -0.4]]
POSITIVE = [[0.3, 0.7, 1.2], [0.9, 0.1, 0.4]]


def gradient_of(fun, points):
    def run(t):
        xs = [t.tensor(p, requires_grad=True) for p in points]
        y = fun(t, *xs)
        (y * y).sum().backward()
        return [y, *[x.grad for x in xs]]

    return run


ONE = "sin cos tan tanh exp sinh cosh arctan square expm1 abs".split()
ONE_POSITIVE = "log log1p sqrt rsqrt reciprocal".split()
TWO = "add subtract multiply divide maximum minimum".split()
for _name in ONE:
    CASES[f"of_{_name}"] = gradient_of(lambda t, x, name=_name: getattr(t, name)(x), [POINT])
for _name in ("log", "log1p", "sqrt"):
    CASES[f"of_{_name}"] = gradient_of(lambda t, x, name=_name: getattr(t, name)(x), [POSITIVE])
for _name in TWO:
    CASES[f"of_{_name}"] = gradient_of(
        lambda t, x, y, name=_name: getattr(t, name)(x, y), [POINT, POSITIVE]
    )
for _name in "relu sigmoid silu softplus gelu elu leaky_relu log_sigmoid".split():
    _theirs = {"log_sigmoid": "logsigmoid"}.get(_name, _name)
    CASES[f"of_{_name}"] = gradient_of(
        lambda t, x, a=_name, b=_theirs: (getattr(t.F, a, None) or getattr(t.F, b))(x), [POINT]
    )
CASES |= {
    "of_softmax": gradient_of(lambda t, x: x.softmax(-1), [POINT]),
    "of_log_softmax": gradient_of(lambda t, x: x.log_softmax(-1), [POINT]),
    "of_sum_axis": gradient_of(lambda t, x: x.sum(1), [POINT]),
    "of_sum_keepdim": gradient_of(lambda t, x: x.sum(dim=0, keepdim=True), [POINT]),
    "of_mean_axis": gradient_of(lambda t, x: x.mean(0), [POINT]),
    "of_prod": gradient_of(lambda t, x: x.prod(), [POINT]),
    "of_cumsum": gradient_of(lambda t, x: x.cumsum(1), [POINT]),
    "of_power": gradient_of(lambda t, x: x**3, [POINT]),
    "of_power_of_tensors": gradient_of(lambda t, x, y: x**y, [POSITIVE, POINT]),
    "of_matmul": gradient_of(lambda t, x, y: x @ y.T, [POINT, POSITIVE]),
    "of_reshape": gradient_of(lambda t, x: x.reshape(3, 2) * 2, [POINT]),
    "of_permute": gradient_of(lambda t, x: x.permute(1, 0) * 2, [POINT]),
    "of_index": gradient_of(lambda t, x: x[1] * 2, [POINT]),
    "of_slice": gradient_of(lambda t, x: x[:, ::2] * 2, [POINT]),
    "of_integers": gradient_of(lambda t, x: x[t.tensor([1, 1, 0])] * 2, [POINT]),
    "of_mask": gradient_of(lambda t, x: x[x > 0] * 2, [POINT]),
    "of_stack": gradient_of(lambda t, x, y: t.stack([x, y]) * 2, [POINT, POSITIVE]),
    "of_concatenate": gradient_of(lambda t, x, y: t.concatenate([x, y], 1) * 2, [POINT, POSITIVE]),
    "of_where": gradient_of(lambda t, x, y: t.where(x > 0, x, y), [POINT, POSITIVE]),
    "of_masked_fill": gradient_of(lambda t, x: x.masked_fill(x > 0, 2.0), [POINT]),
    "of_einsum": gradient_of(lambda t, x, y: t.einsum("ij,kj->ik", x, y), [POINT, POSITIVE]),
    "of_unsqueeze": gradient_of(lambda t, x: x.unsqueeze(0) * x.unsqueeze(1), [POINT]),
    "of_expand": gradient_of(lambda t, x: x[:1].expand(4, 3) * 2, [POINT]),
    "of_clone": gradient_of(lambda t, x: x.clone() * 2, [POINT]),
    "of_flatten": gradient_of(lambda t, x: x.flatten() * 2, [POINT]),
    "of_mse": gradient_of(lambda t, x, y: t.F.mse_loss(x, y), [POINT, POSITIVE]),
    "of_l1": gradient_of(lambda t, x, y: t.F.l1_loss(x, y), [POINT, POSITIVE]),
    "of_norm": gradient_of(lambda t, x: x.norm(), [POINT]),
    "of_max": gradient_of(lambda t, x: x.max(), [POINT]),
    "of_inverse": gradient_of(lambda t, x: t.linalg.inv(x @ x.T), [POINT]),
}
